"""Samples that are copied byte for byte out of the shards of a store (build-shards --compact)."""

from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import torch

from iianet.errors import StoreError
from shardwriter.encode.sources import Planned
from shardwriter.format.index import ShardRecord, entries_of
from shardwriter.format.names import tar_name
from shardwriter.format.plan import ShardTask
from shardwriter.format.sample import Failed, Sample, read_checked_members
from shardwriter.format.shard_writer import source_of
from shardwriter.storage.storage import Storage
from shardwriter.store.entries import SplitEntries
from shardwriter.store.snapshot import Snapshot

OPEN_TARS = 64
"""Tars kept open at a time; entries in hash order come from all of them in turn."""
KEPT_AFTER_DELETION = 16
"""Copies that a cache has deleted take disk as long as they are open: so many of those used last are kept."""


@dataclass(frozen=True, kw_only=True)
class CopiedSamples:
    """See `SampleSource`.

    Attributes:
        storage: Where the store lies.
        base: Names of the plans whose newest entries are copied.
    """

    storage: Storage
    base: tuple[str, ...]

    def open(self, device: torch.device) -> "CopiedStore":  # noqa: ARG002 (nothing is computed)
        """See `SampleSource`."""
        return CopiedStore(Snapshot.open(self.storage, hold=False), self.base)


class CopiedStore:
    """See `Samples`."""

    def __init__(self, snapshot: Snapshot, base: Sequence[str]) -> None:
        self._snapshot = snapshot
        self._headers = [snapshot.header(name) for name in base]
        self._tars = OpenTars(snapshot)

    def read(self, tasks: Iterator[ShardTask]) -> Generator[tuple[ShardTask, Iterator[Planned]]]:
        """See `Samples`."""
        try:
            for task in tasks:
                entries = self._snapshot.entries_of(self._headers, task.split)
                yield task, self._samples(task, entries)
        finally:
            self._tars.close()

    def _samples(self, task: ShardTask, entries: SplitEntries) -> Iterator[Planned]:
        keys, mouths = task.rows["key"].to_pylist(), task.rows["mouth"].to_pylist()
        for key, mouth in zip(keys, mouths, strict=True):
            row = entries.newest.get(key)
            if row is None:
                raise StoreError(
                    f"{self._snapshot.storage.where(tar_name(task.shard))}: is to hold the utterance {key}, which a "
                    f"plan lists in {task.split} and no shard of it holds: plans and indexes are of different stores. "
                    "Give it up by build-shards --abandon, then make plans anew by inspect-shards --reindex"
                )
            yield Planned(key, mouth, self._sample(task.split, entries, row))

    def _sample(self, split: str, entries: SplitEntries, row: int) -> Sample | Failed:
        rows = entries.entries.slice(row, 1)
        (values,) = rows.to_pylist()
        source = source_of(values)
        if values["error"] is not None:
            return Failed(reason=values["error"], source=source)
        record = entries.shards[int(entries.shard_of_entry[row])]
        (entry,) = entries_of(split, record.shard, rows)
        tar = self._tars.open(record)
        members = read_checked_members(tar, entry, self._snapshot.identity)
        return Sample(members=members, frames=entry.frames, source=source)


class OpenTars:
    """Tars that are read from by turns."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._open: OrderedDict[str, tuple[ShardRecord, IO[bytes]]] = OrderedDict()

    def open(self, record: ShardRecord) -> IO[bytes]:
        """A tar. Raises StoreError where it is damaged."""
        if record.shard not in self._open:
            if len(self._open) == OPEN_TARS:
                self._open.popitem(last=False)[1][1].close()
            self._close_deleted()
            self._open[record.shard] = record, self._snapshot.open_tar(record)
        self._open.move_to_end(record.shard)
        return self._open[record.shard][1]

    def close(self) -> None:
        """Close all tars."""
        while self._open:
            self._open.popitem()[1][1].close()

    def _close_deleted(self) -> None:
        for shard in list(self._open)[:-KEPT_AFTER_DELETION]:
            if not self._snapshot.storage.is_kept(tar_name(shard), self._open[shard][0].tar_digest):
                self._open.pop(shard)[1].close()
