"""Compare a store with the corpus that a config names (inspect-shards --against)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from tabulate import tabulate

from iianet.config.schema import Config
from iianet.encoder.mouth import SAMPLE_RATE
from iianet.errors import StoreError, WeightsError
from shardwriter.build.difference import (
    ORIGIN_COLUMNS,
    refuse_other_paths,
    stale_utterances,
    stored_frames,
    stored_rows,
)
from shardwriter.corpus.manifest import Manifest, is_listed, load_manifests, manifest_folders
from shardwriter.corpus.manifest_data import Utterance
from shardwriter.corpus.mouth_lengths import other_lengths
from shardwriter.corpus.views import with_views
from shardwriter.format.names import SPLITS, count_views, parse_view_split, sorted_splits
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.report import Section
from shardwriter.store.identity import refuse_made_otherwise, unknown_origin

SHOWN_KEYS = 20


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
    found = {split: manifest for split, manifest in manifests.items() if split not in unreadable}
    refuse_other_paths(found, store.snapshot, store.snapshot.active)
    return {split: _compare(store, manifest, tolerance) for split, manifest in found.items()}


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


def _compare(store: InspectedStore, manifest: Manifest, tolerance: int) -> Comparison:
    snapshot = store.snapshot
    entries = snapshot.split(manifest.split, (*ORIGIN_COLUMNS, "frames"))
    keys = manifest.utterances.column("key")
    rows = stored_rows(keys, entries)
    failed = np.isin(rows, np.setdiff1d(entries.newest_rows, entries.stored_rows))
    stored = np.flatnonzero((rows >= 0) & ~failed)
    missing = [manifest.utterances[int(index)] for index in np.flatnonzero((rows < 0) | failed)]
    stale = stale_utterances(manifest, stored, rows[stored], entries)
    reasons = {key: f"failed: {error}" for key, error in entries.failures.items()}
    return Comparison(
        stored=len(stored),
        missing={utterance: reasons.get(utterance.key, "not stored") for utterance in missing},
        failed=int(failed.sum()),
        stale=[manifest.utterances[int(index)] for index in stale],
        other_lengths=[]
        if parse_view_split(manifest.split)[1]  # its mouths are those of its split
        else other_lengths(manifest, stored_frames(manifest, entries), SAMPLE_RATE / store.identity.fps, tolerance),
    )


def show_comparisons(comparisons: Mapping[str, Comparison], command: str) -> Section:
    """Counts, the first keys of each kind, and the command that fixes it; programs see them among the splits."""
    rows = [(split, it.stored, len(it.missing), it.failed, len(it.stale)) for split, it in comparisons.items()]
    lines = [tabulate(rows, headers=["split", "stored", "missing", "failed", "stale"], intfmt=",")]
    problems = []
    for split, found in comparisons.items():
        if found.missing:
            count = len(found.missing)
            problems.append(f"{split}: {count} utterances of the manifest are missing, {found.failed} of them failed")
        if found.stale:
            problems.append(f"{split}: {len(found.stale)} stored utterances are stale, for their npz has changed")
        if others := found.other_lengths:
            problems.append(f"{split}: {len(others)} stored mouths are longer or shorter than their audio")
            lines += ["", f"{split}, of another length than their audio ({len(others)}):"]
            lines += [f"  {other}" for other in others[:SHOWN_KEYS]]
            lines += [f"  ... and {len(others) - SHOWN_KEYS} more"] if len(others) > SHOWN_KEYS else []
        changed = dict.fromkeys(found.stale, "has changed since it was encoded")
        for kind, reasons in (("missing", found.missing), ("stale", changed)):
            if reasons:
                lines += ["", f"{split}, {kind} ({len(reasons)}):"]
                lines += [f"  {it.key}  {it.mouth}: {reason}" for it, reason in islice(reasons.items(), SHOWN_KEYS)]
            if len(reasons) > SHOWN_KEYS:
                lines.append(f"  ... and {len(reasons) - SHOWN_KEYS} more, all with --json")
    if problems:
        lines += ["", f"To fix it: {command}"]
    if any(found.failed for found in comparisons.values()):
        lines.append("Failed utterances are tried again once their npz has changed, or with --retry_failed.")
    return Section(text="\n".join(lines), problems=problems)
