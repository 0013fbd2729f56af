"""Compare a store with the corpus that a config names (inspect-shards --against)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tabulate import tabulate

from iianet.config.schema import Config
from shardwriter.build.work import refuse_other_paths, stale_utterances
from shardwriter.corpus.manifest import Manifest, has_manifest, load_manifests, manifest_folders
from shardwriter.corpus.views import count_views, with_views
from shardwriter.format.names import SPLITS, split_position
from shardwriter.inspect.contents import Contents

SHOWN_KEYS = 20


class Differing(NamedTuple):
    """An utterance that the store has not as the corpus has it: its npz relative to data_root, and why."""

    key: str
    mouth: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a split of a store has of its manifest.

    Attributes:
        stored: Utterances that are stored, stale ones too.
        missing: Those that are not, failed ones too.
        failed: How many of the missing could not be encoded.
        stale: Stored ones whose npz is no longer what was encoded.
    """

    stored: int
    missing: tuple[Differing, ...]
    failed: int
    stale: tuple[Differing, ...]


def corpus_manifests(contents: Contents, config: Config) -> dict[str, Manifest]:
    """The manifests that there are, and those of the views that the store has planned.

    Raises:
        ManifestError: There is none, or one contradicts itself.
    """
    present = [split for split, folder in manifest_folders(config).items() if has_manifest(folder)]
    manifests = load_manifests(config, present or SPLITS, contents.catalog.record.data_root)
    found = with_views(manifests, count_views(contents.catalog.splits))
    return dict(sorted(found.items(), key=lambda item: split_position(item[0])))


def compare(contents: Contents, manifests: Mapping[str, Manifest]) -> dict[str, Comparison]:
    """Compare every split that has a manifest, whether the store has it or not.

    Raises:
        StoreError: A key has another path in the manifest, as no build would continue either.
    """
    unreadable = set(contents.catalog.splits).difference(contents.splits)
    return {split: _compare(contents, manifest) for split, manifest in manifests.items() if split not in unreadable}


def _compare(contents: Contents, manifest: Manifest) -> Comparison:
    refuse_other_paths(manifest, contents.catalog.plans)
    held = contents.splits.get(manifest.split) or contents.catalog.split(manifest.split)
    stored: list[int] = []
    missing: list[Differing] = []
    for index, utterance in enumerate(manifest.utterances):
        if utterance.key in held.newest and utterance.key not in held.failures:
            stored.append(index)
        else:
            reason = held.failures.get(utterance.key)
            missing.append(Differing(utterance.key, utterance.mouth, f"failed: {reason}" if reason else "not stored"))
    stale = [manifest.utterances[index] for index in stale_utterances(manifest, stored, held)]
    return Comparison(
        stored=len(stored),
        missing=tuple(missing),
        failed=sum(item.key in held.failures for item in missing),
        stale=tuple(Differing(item.key, item.mouth, "has changed since it was encoded") for item in stale),
    )


def comparison_problems(comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """In one line a split."""
    for split, found in comparisons.items():
        if found.missing:
            yield f"{split}: {len(found.missing)} utterances of the manifest are missing, {found.failed} of them failed"
        if found.stale:
            yield f"{split}: {len(found.stale)} stored utterances are stale, for their npz has changed"


def comparison_lines(comparisons: Mapping[str, Comparison], command: str) -> list[str]:
    """For people: counts, the first keys of each kind, and what mends it."""
    rows = [(split, it.stored, len(it.missing), it.failed, len(it.stale)) for split, it in comparisons.items()]
    lines = tabulate(rows, headers=["split", "stored", "missing", "failed", "stale"], intfmt=",").splitlines()
    for split, found in comparisons.items():
        for kind, items in (("missing", found.missing), ("stale", found.stale)):
            if items:
                lines += ["", f"{split}, {kind} ({len(items)}):"]
                lines += [f"  {item.key}  {item.mouth}: {item.reason}" for item in items[:SHOWN_KEYS]]
            if len(items) > SHOWN_KEYS:
                lines.append(f"  ... and {len(items) - SHOWN_KEYS} more, all with --json")
    if any(found.missing or found.stale for found in comparisons.values()):
        lines += ["", f"To mend it: {command}"]
    if any(found.failed for found in comparisons.values()):
        lines.append("Failed utterances are tried again once their npz has changed, or with --retry_failed.")
    return lines
