"""Compare a store with the corpus that a config names (inspect-shards --against)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from iianet.config.schema import Config
from iianet.errors import StoreError, WeightsError
from iianet.wording import listing
from shardwriter.build.difference import ORIGIN_COLUMNS, Difference, find_differences, other_stored_lengths
from shardwriter.build.options import BuildOptions
from shardwriter.corpus.manifest import Manifest, is_listed, load_manifests, manifest_folders
from shardwriter.corpus.manifest_data import Utterance
from shardwriter.corpus.views import with_views
from shardwriter.format.names import SPLITS, count_views, sorted_splits
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.report import Section
from shardwriter.store.identity import refuse_made_otherwise, unknown_origin

SHOWN, REST = 20, "all with --json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a split of a store has of its manifest.

    Attributes:
        stored: Utterances that are stored, stale ones too.
        missing: Those that are not, failed ones too, and why.
        failed: How many of the missing could not be encoded.
        stale: Stored ones whose npz is no longer what was encoded.
        other_lengths: Stored ones whose mouth is longer or shorter than their audio.
    """

    stored: int
    missing: Mapping[Utterance, str]
    failed: int
    stale: Sequence[Utterance]
    other_lengths: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Counts and keys for programs."""
        return {
            "missing": len(self.missing),
            "stale": len(self.stale),
            "missing_keys": [utterance.key for utterance in self.missing],
            "stale_keys": [utterance.key for utterance in self.stale],
            "other_lengths": list(self.other_lengths),
        }


def corpus_manifests(store: InspectedStore, config: Config) -> dict[str, Manifest]:
    """The manifests that there are, and those of the views that the store has planned.

    Raises:
        ManifestError: There is none, or one contradicts itself.
    """
    present = [split for split, folders in manifest_folders(config).items() if is_listed(folders)]
    manifests = load_manifests(config, present or SPLITS, store.snapshot.record.data_root)
    found = with_views(manifests, count_views(store.snapshot.splits))
    return {split: found[split] for split in sorted_splits(found)}


def compare(store: InspectedStore, manifests: Mapping[str, Manifest], tolerance: int = 1) -> dict[str, Comparison]:
    """Compare every split that has a manifest, whether the store has it or not.

    Args:
        store: To compare.
        manifests: See `corpus_manifests`.
        tolerance: Frames by which a mouth may be longer or shorter than its audio.

    Raises:
        StoreError: A key has another path in the manifest, as no build would continue either.
    """
    unreadable = set(store.snapshot.splits).difference(store.splits)
    known = {split: manifest for split, manifest in manifests.items() if split not in unreadable}
    asked = BuildOptions(device=torch.device("cpu"))
    found = find_differences(known, store.snapshot, store.snapshot.active, asked)
    return {split: _compare(store, difference, tolerance) for split, difference in found.items()}


def compare_encoder(store: InspectedStore, config: Config) -> Section:
    """Whether the config's encoder made the store's embeddings, as train.py and build-shards ask before they use it."""
    if store.identity.is_imported:
        unknown = f"the store's are not recorded, for it comes from {unknown_origin(store.identity)}"
        return Section(text=f"Weights not compared: {unknown}; --recheck N encodes some utterances again")
    try:
        refuse_made_otherwise(store.name, store.identity, config.encoder_source())
    except WeightsError as error:
        return Section(text=f"Weights not compared: {error}")
    except StoreError as error:
        return Section(problems=[str(error)])
    return Section(text="Weights and preprocessing are as the config says.")


def _compare(store: InspectedStore, found: Difference, tolerance: int) -> Comparison:
    manifest, utterances = found.manifest, found.manifest.utterances
    entries = store.snapshot.split(manifest.split, (*ORIGIN_COLUMNS, "frames"))
    missing = np.sort(np.concatenate([found.new, found.resumed, found.failed]))
    reasons = {key: f"failed: {error}" for key, error in entries.failures.items()}
    named = [utterances[int(index)] for index in missing]
    return Comparison(
        stored=len(utterances) - len(missing),
        missing={utterance: reasons.get(utterance.key, "not stored") for utterance in named},
        failed=len(found.failed),
        stale=[utterances[int(index)] for index in found.changed],
        other_lengths=other_stored_lengths(manifest, entries, store.identity.fps, tolerance),
    )


def show_comparisons(comparisons: Mapping[str, Comparison], command: str) -> Section:
    """Counts, the first keys of each kind, and the command that fixes it; programs see them among the splits."""
    rows = [(split, it.stored, len(it.missing), it.failed, len(it.stale)) for split, it in comparisons.items()]
    lines = [tabulate(rows, headers=["split", "stored", "missing", "failed", "stale"], intfmt=",")]
    problems = []
    for split, found in comparisons.items():
        stale = dict.fromkeys(found.stale, "has changed since it was encoded")
        lines += listing(f"{split}, of another length than their audio ({{}}):", found.other_lengths, REST, shown=SHOWN)
        lines += listing(f"{split}, missing ({{}}):", list(found.missing.items()), REST, _why, SHOWN)
        lines += listing(f"{split}, stale ({{}}):", list(stale.items()), REST, _why, SHOWN)
        counts = {
            f"utterances of the manifest are missing, {found.failed} of them failed": len(found.missing),
            "stored utterances are stale, for their npz has changed": len(stale),
            "stored mouths are longer or shorter than their audio": len(found.other_lengths),
        }
        problems += [f"{split}: {count} {what}" for what, count in counts.items() if count]
    if problems:
        lines += ["", f"To fix it: {command}"]
    if any(found.failed for found in comparisons.values()):
        lines.append("Failed utterances are tried again once their npz has changed, or with --retry_failed.")
    return Section(text="\n".join(lines), problems=problems)


def _why(item: tuple[Utterance, str]) -> str:
    utterance, reason = item
    return f"{utterance.key}  {utterance.mouth}: {reason}"
