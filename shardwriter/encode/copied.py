"""Samples that are copied byte for byte out of the shards of a store (build-shards --compact)."""

import os
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO

import torch

from iianet.errors import StoreError
from shardwriter.encode.sources import Planned
from shardwriter.format.digest import digest_of
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

    def absolute(self) -> "CopiedSamples":
        """See `SampleSource`."""
        return replace(self, storage=self.storage.absolute())

    def open(self, device: torch.device) -> "CopiedStore":  # noqa: ARG002 (nothing is computed)
        """See `SampleSource`."""
        return CopiedStore(Snapshot.open(self.storage, hold=False), self.base)


class CopiedStore:
    """See `Samples`."""

    def __init__(self, snapshot: Snapshot, base: Sequence[str]) -> None:
        self._snapshot = snapshot
        self._headers = [snapshot.header(name) for name in base]
        self._tars = OpenTars(snapshot.storage)

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
            yield Planned(key, mouth, self._sample(task.split, entries, entries.newest[key]))

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
    """Tars that are read from by turns; each is compared with its digest once, for damage must not be copied."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._open: OrderedDict[str, tuple[ShardRecord, IO[bytes]]] = OrderedDict()
        self._checked: set[str] = set()

    def open(self, record: ShardRecord) -> IO[bytes]:
        """A tar. Raises StoreError where it is damaged."""
        if record.shard not in self._open:
            if len(self._open) == OPEN_TARS:
                self._open.popitem(last=False)[1][1].close()
            self._close_deleted()
            self._open[record.shard] = record, self._opened(record)
        self._open.move_to_end(record.shard)
        return self._open[record.shard][1]

    def close(self) -> None:
        """Close all tars."""
        while self._open:
            self._open.popitem()[1][1].close()

    def _opened(self, record: ShardRecord) -> IO[bytes]:
        name = tar_name(record.shard)
        where = self._storage.where(name)
        try:
            descriptor, is_checked = self._storage.open_tar(name, record.tar_size, record.tar_digest)
        except OSError as error:
            raise StoreError(f"{where}: cannot be opened ({error.strerror})") from error
        stream = os.fdopen(descriptor, "rb")
        if record.shard in self._checked or is_checked:
            return stream
        digest, size = digest_of(stream)
        if (digest, size) != (record.tar_digest, record.tar_size):
            stream.close()
            raise StoreError(
                f"{where}: has {size:,} bytes and the digest {digest}, its index says {record.tar_size:,} and "
                f"{record.tar_digest}: it is damaged, and nothing was copied from it. Delete it and run build-shards, "
                "which writes it again, then compact"
            )
        self._checked.add(record.shard)
        return stream

    def _close_deleted(self) -> None:
        for shard in list(self._open)[:-KEPT_AFTER_DELETION]:
            if not self._storage.is_kept(tar_name(shard), self._open[shard][0].tar_digest):
                self._open.pop(shard)[1].close()
