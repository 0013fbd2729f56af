"""Decide what a build has to encode: what is new, changed, or failed before."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from tqdm import tqdm

from iianet.errors import StoreError
from shardwriter.corpus.manifest import Manifest
from shardwriter.encode.clips import source_state
from shardwriter.format.names import SPLITS, parse_view_split, view_split
from shardwriter.format.plan import Plan
from shardwriter.store.catalog import Origin, SplitCatalog

logger = logging.getLogger(__name__)

STAT_THREADS = 16
"""Threads that ask for file sizes and times: it is waiting, not work, above all on network file systems."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Which utterances of a split a build encodes, and why, as indices into its manifest, in hash order.

    `resumed` are those of unfinished tasks of earlier plans; `left_out` says how many a limit leaves out.
    """

    manifest: Manifest
    new: Sequence[int] = ()
    changed: Sequence[int] = ()
    retried: Sequence[int] = ()
    resumed: Sequence[int] = ()
    left_out: int = 0

    @property
    def to_plan(self) -> list[int]:
        """Those that no unfinished task of an earlier plan has."""
        return sorted([*self.new, *self.changed, *self.retried])


def find_work(
    manifest: Manifest,
    plans: Sequence[Plan],
    catalog: SplitCatalog,
    *,
    limit: int | None,
    verify_sources: bool,
    retry_failed: bool,
) -> Work:
    """Compare a manifest with what its split of a store holds.

    An utterance is changed where the size or time of its npz differ from the recorded ones and then its digest does;
    `verify_sources` digests them all. One that failed is tried again where its npz changed, or with `retry_failed`.
    """
    complete = {record.shard for record in catalog.shards}
    unfinished: set[str] = set()
    for plan in plans:
        for task in plan.tasks([manifest.split]):
            keys = task.rows["key"].to_pylist()
            unfinished.difference_update(keys)
            if task.shard not in complete:
                unfinished.update(keys)
    refuse_other_paths(manifest, plans)
    chosen = range(len(manifest.utterances))[:limit]
    keys = [manifest.utterances[index].key for index in chosen]
    resumed = [index for index, key in zip(chosen, keys, strict=True) if key in unfinished]
    known = [index for index, key in zip(chosen, keys, strict=True) if key not in unfinished and key in catalog.newest]
    new = [
        index for index, key in zip(chosen, keys, strict=True) if key not in unfinished and key not in catalog.newest
    ]
    stale = stale_utterances(manifest, known, catalog, verify_sources=verify_sources)
    failed = {index for index in known if _origin(catalog, manifest, index).error is not None}
    return Work(
        manifest=manifest,
        new=new,
        changed=[index for index in stale if index not in failed],
        retried=sorted(failed) if retry_failed else [index for index in stale if index in failed],
        resumed=resumed,
        left_out=len(manifest.utterances) - len(chosen),
    )


def refuse_other_paths(manifest: Manifest, plans: Sequence[Plan]) -> None:
    """Raise StoreError where the store knows an utterance under another path: then data_root is not what it was."""
    asked = {utterance.key: utterance.mouth for utterance in manifest.utterances}
    _, view = parse_view_split(manifest.split)
    splits = pa.array([view_split(split, view) for split in SPLITS])
    for plan in plans:
        rows = plan.table.select(["key", "mouth"]).filter(pc.is_in(plan.table["split"], value_set=splits))
        for key, mouth in zip(rows["key"].to_pylist(), rows["mouth"].to_pylist(), strict=True):
            if asked.get(key, mouth) != mouth:
                raise StoreError(
                    f"{manifest.split}: {key} is {mouth} in the store's {plan.name} and {asked[key]} in the manifest, "
                    f"relative to data_root {manifest.data_root}. Give the --data_root that the store was built with "
                    "(or where that folder lies now), or another --shards folder for another corpus."
                )


def stale_utterances(
    manifest: Manifest, known: Sequence[int], catalog: SplitCatalog, *, verify_sources: bool = False
) -> list[int]:
    """Those of the stored `known` whose npz is no longer what was encoded. A vanished npz makes none stale."""

    vanished: list[str] = []

    def is_stale(index: int) -> bool:
        utterance = manifest.utterances[index]
        recorded = _origin(catalog, manifest, index)
        source = recorded.mouth or utterance.mouth  # not the mouth itself where its embedding was imported
        path = manifest.data_root / source
        now = source_state(path, source)
        if now.size is None:
            vanished.extend([source] if recorded.error is None else [])
            return False
        same = (now.size, now.mtime_ns) == (recorded.source_size, recorded.source_mtime_ns)
        if recorded.source_digest is None:  # it could not be read then, or came from no npz
            return recorded.error is not None and not same
        return (not same or verify_sources) and _digest(path) != recorded.source_digest

    with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat-npz") as pool:
        bar = tqdm(
            pool.map(is_stale, known),
            total=len(known),
            desc=f"checking {manifest.split}",
            unit="npz",
            delay=1.0,
            leave=False,
        )
        found = [index for index, stale in zip(known, bar, strict=True) if stale]
    if vanished:
        logger.warning(
            "%s: %d of %d stored utterances have no npz at %s any more (e.g. %s); their embeddings are kept",
            manifest.split,
            len(vanished),
            len(known),
            manifest.data_root,
            min(vanished),
        )
    return found


def _origin(catalog: SplitCatalog, manifest: Manifest, index: int) -> Origin:
    return catalog.origins[catalog.newest[manifest.utterances[index].key]]


def _digest(path: Path) -> str | None:
    try:
        return str(xxhash.xxh3_64_hexdigest(path.read_bytes()))
    except OSError:
        return None
