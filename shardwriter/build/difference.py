"""What a store lacks of a manifest: new, changed, failed or unfinished utterances. Column by column."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.errors import ManifestError, StoreError
from iianet.regular_file import read_regular
from iianet.wording import counted
from shardwriter.build.options import BuildOptions
from shardwriter.corpus.embedding_npz import embedding_path
from shardwriter.corpus.manifest_data import ROWS_AT_A_TIME, Manifest
from shardwriter.corpus.mouth_lengths import other_lengths
from shardwriter.encode.clips import source_state
from shardwriter.format.digest import digest_of
from shardwriter.format.names import SPLITS, parse_view_split, view_split
from shardwriter.format.plan import PlanHeader
from shardwriter.store.entries import SplitEntries
from shardwriter.store.snapshot import Snapshot

logger = logging.getLogger(__name__)

SAMPLED = 8
"""Files of each kind and split that are looked at before all are read."""
STAT_THREADS = 16
"""Threads that ask for file sizes and times: that is waiting, not work, especially on network file systems."""
STAT_ROWS = 2048
"""Files that a thread asks for at a time."""
ORIGIN_COLUMNS = ("key", "mouth", "source_size", "source_mtime_ns", "source_digest", "error")
"""Of the index: all that a difference needs."""
REASONS = ("new", "changed", "retried", "resumed")
"""Why an utterance is stored, as `Difference` has them."""

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def _no_rows() -> Rows:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Which utterances of a split a build stores, and why, as indices into its manifest, ascending: in hash order.

    Attributes:
        manifest: Of the split.
        new: Not stored.
        changed: Stored, but their npz has changed.
        retried: Failed before, and are tried again.
        resumed: In unfinished shards of earlier plans.
        failed: All that failed before; not a reason by itself.
        left_out: How many a limit leaves out.
    """

    manifest: Manifest
    new: Rows = field(default_factory=_no_rows)
    changed: Rows = field(default_factory=_no_rows)
    retried: Rows = field(default_factory=_no_rows)
    resumed: Rows = field(default_factory=_no_rows)
    failed: Rows = field(default_factory=_no_rows)
    left_out: int = 0

    @property
    def to_plan(self) -> Rows:
        """Those that no unfinished task of an earlier plan has."""
        return np.sort(np.concatenate([self.new, self.changed, self.retried]))

    @property
    def counts(self) -> dict[str, int]:
        """Utterances to be stored, by why they are."""
        return {why: len(getattr(self, why)) for why in REASONS}

    @property
    def count(self) -> int:
        """Utterances to be stored."""
        return sum(self.counts.values())


def find_differences(
    manifests: Mapping[str, Manifest], snapshot: Snapshot | None, headers: Sequence[PlanHeader], options: BuildOptions
) -> dict[str, Difference]:
    """What some plans of a store, or no store, lack of manifests, split by split.

    An utterance is changed where the size or time of its npz differ from the recorded ones and then its digest does.
    One that failed is tried again where its npz has changed.

    Raises:
        StoreError: The store knows an utterance under another path.
    """
    if snapshot:
        refuse_other_paths(manifests, snapshot, headers)
    return {
        split: _difference(manifest, snapshot, headers, options) if snapshot else _everything(manifest, options.limit)
        for split, manifest in manifests.items()
    }


def _everything(manifest: Manifest, limit: int | None) -> Difference:
    count = len(manifest.utterances)
    chosen = np.arange(count)[:limit]
    return Difference(manifest=manifest, new=chosen, left_out=count - len(chosen))


def _difference(
    manifest: Manifest, snapshot: Snapshot, headers: Sequence[PlanHeader], options: BuildOptions
) -> Difference:
    entries = snapshot.entries_of(headers, manifest.split, ORIGIN_COLUMNS)
    keys = manifest.utterances.column("key")[: options.limit]
    rows = _stored_rows(keys, entries)
    unfinished = np.asarray(pc.is_in(keys, value_set=snapshot.unfinished_keys(headers, entries, manifest.split)))
    known = np.flatnonzero(rows >= 0)
    failed = np.zeros(len(keys), dtype=np.bool_)
    failed[known] = np.asarray(pc.is_valid(entries.entries["error"].take(pa.array(rows[known]))))
    stale = np.zeros(len(keys), dtype=np.bool_)
    stale[_stale_utterances(manifest, known, rows[known], entries, options.verify_sources)] = True
    return Difference(
        manifest=manifest,
        new=np.flatnonzero((rows < 0) & ~unfinished),
        changed=np.flatnonzero(stale & ~failed),
        retried=np.flatnonzero(failed if options.retry_failed else failed & stale),
        resumed=np.flatnonzero(unfinished),
        failed=np.flatnonzero(failed),
        left_out=len(manifest.utterances) - len(keys),
    )


def _stored_rows(keys: pa.Array, entries: SplitEntries) -> Rows:
    """Row of each key's newest entry, stored or failed, -1 where it has none, `(keys,)`."""
    newest = entries.entries["key"].combine_chunks()
    if len(entries.newest_rows) < len(newest):
        newest = newest.take(pa.array(entries.newest_rows))
    found = np.asarray(pc.fill_null(pc.index_in(keys, value_set=newest), -1), dtype=np.int64)
    if not len(entries.newest_rows):
        return found
    return np.where(found < 0, -1, entries.newest_rows[found])


def other_stored_lengths(manifest: Manifest, entries: SplitEntries, fps: float, tolerance: int) -> list[str]:
    """Name the stored mouths that are longer or shorter than their audio, see `other_lengths`.

    Args:
        manifest: Of a split; of a view there are none, since its mouths are those of its split.
        entries: Of the same, with the column `frames`.
        fps: Frames per second.
        tolerance: Frames.
    """
    if parse_view_split(manifest.split)[1]:
        return []
    frames = np.append(np.asarray(entries.entries["frames"], dtype=np.int64), 0)  # -1 is the last one
    stored = frames[_stored_rows(manifest.utterances.column("key"), entries)]
    return other_lengths(manifest, stored, SAMPLE_RATE / fps, tolerance)


def refuse_other_paths(manifests: Mapping[str, Manifest], snapshot: Snapshot, headers: Sequence[PlanHeader]) -> None:
    """Raise StoreError where the store knows an utterance under another path: then data_root is not what it was."""
    for header in headers:
        table = snapshot.read_plan(header, ("split", "key", "mouth")).table
        for manifest in manifests.values():
            _refuse_other_paths(manifest, header, table)


def _refuse_other_paths(manifest: Manifest, header: PlanHeader, table: pa.Table) -> None:
    asked, mouths = manifest.utterances.column("key"), manifest.utterances.column("mouth")
    _, view = parse_view_split(manifest.split)
    splits = pa.array([view_split(split, view) for split in SPLITS])
    rows = pc.index_in(table["key"], value_set=asked)
    for start in range(0, len(table), ROWS_AT_A_TIME):
        planned, ours = table.slice(start, ROWS_AT_A_TIME), mouths.take(rows.slice(start, ROWS_AT_A_TIME))
        other = pc.and_(pc.is_in(planned["split"], value_set=splits), pc.not_equal(ours, planned["mouth"]))
        if pc.any(other).as_py():
            first = pc.index(other, True).as_py()
            raise StoreError(
                f"{manifest.split}: {planned['key'][first]} is {planned['mouth'][first]} in the store's {header.name} "
                f"and {ours[first]} in the manifest, relative to data_root {manifest.data_root}. Give the --data_root "
                "that the store was built with (or where that folder lies now), or another --shards folder for "
                "another corpus."
            )


def refuse_missing_files(wanted: Sequence[tuple[Manifest, Sequence[int] | Rows]]) -> None:
    """Raise ManifestError where neither npz nor wavs of some utterances exist: that is a wrong folder, not bad files.

    Args:
        wanted: Manifests, and utterances of each; a few are looked at, evenly over them.
    """
    files: list[Path] = []
    for manifest, rows in wanted:
        chosen = spread(rows)
        first = np.searchsorted(manifest.utterance_of_example(), chosen)
        mouths, mixtures = manifest.utterances.column("mouth"), manifest.examples.column("mixture")
        paths = [*(mouths[row] for row in chosen), *(mixtures[int(row)] for row in first if row < len(mixtures))]
        files += [manifest.data_root / path.as_py() for path in paths]
    if files and not any(map(os.path.lexists, files)):
        raise ManifestError(
            f"none of the first {len(files)} files in the lists can be found, e.g. {files[0]}. Paths in the lists "
            f"start at data_root, {wanted[0][0].data_root}, unless they are whole; give the folder of the corpus "
            "with --data_root, or make the lists again"
        )


def refuse_missing_embeddings(wanted: Sequence[tuple[Manifest, Rows]]) -> None:
    """Raise ManifestError where an earlier tool has left no embedding of any of some utterances."""

    def files() -> Iterator[Path]:
        for manifest, rows in wanted:
            yield from (manifest.data_root / embedding_path(manifest.utterances[int(row)].mouth) for row in rows)

    first = next(files(), None)
    if first is not None and not any(map(os.path.lexists, files())):
        count = sum(len(rows) for _, rows in wanted)
        raise ManifestError(
            f"--import_embeddings: none of {counted(count, 'file')} is there, e.g. {first}; expected what an earlier "
            "tool left beside each npz. Give the folder of its corpus with --data_root, or leave --import_embeddings "
            "out to encode"
        )


def spread(rows: Sequence[int] | Rows) -> list[int]:
    """A few of some utterances, evenly over them."""
    places = np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows)), dtype=int)
    return [int(rows[place]) for place in places]


def refuse_unrelated_root(manifests: Mapping[str, Manifest], snapshot: Snapshot, root: Path) -> None:
    """Raise StoreError where `root` is not the recorded data_root and no utterance shows it to be the same folder."""
    recorded = snapshot.data_root
    if recorded is None or recorded == root:
        return
    tables = [snapshot.read_plan(header, ("key",)).table["key"] for header in snapshot.active]
    planned = pa.chunked_array([chunk for keys in tables for chunk in keys.chunks], type=pa.string())
    ours = [manifest.utterances.column("key") for manifest in manifests.values()]
    if len(planned) and not any(pc.any(pc.is_in(keys, value_set=planned)).as_py() for keys in ours):
        raise StoreError(
            f"{snapshot.storage.name}: its paths start at {recorded}, those of this corpus at {root}, and it holds "
            "none of this corpus' utterances. Give --data_root, so that both start at one folder, or another "
            "--shards folder."
        )


def _stale_utterances(manifest: Manifest, known: Rows, rows: Rows, entries: SplitEntries, verify_sources: bool) -> Rows:
    """Stored utterances whose npz is no longer what was encoded. A vanished npz makes none stale.

    Args:
        manifest: Of the split.
        known: Utterances of it that have an entry.
        rows: The entry of each.
        entries: With `ORIGIN_COLUMNS`.
        verify_sources: Digest every npz.
    """
    stale: list[int] = []
    vanished: list[str] = []
    mouths = manifest.utterances.column("mouth")

    def check(start: int) -> None:
        """Check some rows: their paths are Python objects for a moment only."""
        chosen, its_rows = known[start : start + STAT_ROWS], pa.array(rows[start : start + STAT_ROWS])
        recorded = entries.entries.select(list(ORIGIN_COLUMNS[1:])).take(its_rows).to_pylist()
        paths = mouths.take(pa.array(chosen)).to_pylist()
        for index, mouth, origin in zip(chosen.tolist(), paths, recorded, strict=True):
            source = origin["mouth"] or mouth  # not the mouth itself where its embedding was imported
            is_stale = _is_stale(manifest.data_root / source, origin, verify_sources)
            if is_stale:
                stale.append(index)
            elif is_stale is None and origin["error"] is None:
                vanished.append(source)

    with (
        ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat-npz") as pool,
        tqdm(total=len(known), desc=f"checking {manifest.split}", unit="npz", delay=1.0, leave=False) as bar,
    ):
        for _ in pool.map(check, range(0, len(known), STAT_ROWS)):
            bar.update(STAT_ROWS)
    if vanished:
        logger.warning(
            "%s: %d of %d stored utterances have no npz at %s any more (e.g. %s); their embeddings are kept",
            manifest.split,
            len(vanished),
            len(known),
            manifest.data_root,
            min(vanished),
        )
    return np.array(sorted(stale), dtype=np.int64)


def _is_stale(path: Path, origin: Mapping[str, Any], verify_sources: bool) -> bool | None:
    """Whether a file is no longer what was encoded; None where it is gone."""
    now = source_state(path, origin["mouth"])
    if now.size is None:
        return None
    same = (now.size, now.mtime_ns) == (origin["source_size"], origin["source_mtime_ns"])
    if origin["source_digest"] is None:  # it could not be read then, or came from no npz
        return origin["error"] is not None and not same
    return (not same or verify_sources) and _digest(path) != origin["source_digest"]


def _digest(path: Path) -> str | None:
    try:
        with read_regular(path) as stream:
            return digest_of(stream)[0]
    except OSError:
        return None
