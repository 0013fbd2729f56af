"""A store as inspect-shards sees it: all that can be read, and what is wrong with the rest."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa

from iianet.errors import StoreError
from shardwriter.format.index import Entry, entries_of
from shardwriter.format.names import hash_position, tar_name
from shardwriter.format.record import Identity
from shardwriter.storage.storage import Storage
from shardwriter.store.entries import SplitEntries
from shardwriter.store.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class InspectedStore:
    """A store as it was when opened.

    Attributes:
        snapshot: Its record, plans and files.
        splits: The splits whose indexes could be read.
        unreadable: Why other splits could not be read.
    """

    snapshot: Snapshot
    splits: Mapping[str, SplitEntries]
    unreadable: Sequence[str]

    @classmethod
    def open(cls, storage: Storage) -> "InspectedStore":
        """Open a store. Raises StoreError where it is none, or its record or plans are damaged."""
        snapshot = Snapshot.open(storage)
        splits: dict[str, SplitEntries] = {}
        unreadable: list[str] = []
        for split in snapshot.splits:
            try:
                splits[split] = snapshot.split(split)
            except StoreError as error:
                unreadable.append(str(error))
        return cls(snapshot=snapshot, splits=splits, unreadable=unreadable)

    @property
    def storage(self) -> Storage:
        """Where it lies."""
        return self.snapshot.storage

    @property
    def name(self) -> str:
        """What users call it."""
        return self.snapshot.storage.name

    @property
    def identity(self) -> Identity:
        """What the embeddings were made with."""
        return self.snapshot.identity

    @property
    def problems(self) -> list[str]:
        """What does not count because it cannot be read, and the cure."""
        cure = "so its utterances count as missing; run build-shards to write it again"
        damaged = [shard for entries in self.splits.values() for shard in entries.damaged]
        return [
            *self.unreadable,
            *(f"{tar_name(shard)}: is gone, or does not fit its index, {cure}" for shard in damaged),
        ]

    def stored(self, split: str) -> list[str]:
        """Keys whose newest entry is an embedding, in hash order."""
        entries = self.splits[split]
        keys = entries.entries["key"].take(pa.array(entries.stored_rows)).to_pylist()
        return sorted(keys, key=lambda key: (hash_position(key), key))

    def entry(self, split: str, key: str) -> Entry:
        """The newest entry of a key."""
        entries = self.splits[split]
        row = entries.newest[key]
        shard = entries.shards[int(entries.shard_of_entry[row])].shard
        return entries_of(split, shard, entries.entries.slice(row, 1))[0]

    @contextmanager
    def open_tar(self, split: str, shard: str) -> Iterator[IO[bytes]]:
        """Open a tar of a split. Raises StoreError where it cannot be opened."""
        record = next(record for record in self.splits[split].shards if record.shard == shard)
        with open_tar(self.storage, record.shard, record.tar_size, record.tar_digest) as stream:
            yield stream


@contextmanager
def open_tar(storage: Storage, shard: str, size: int, digest: str) -> Iterator[IO[bytes]]:
    """Open a tar that should have this size and digest. Raises StoreError where it cannot be opened."""
    try:
        stream = os.fdopen(storage.open_tar(tar_name(shard), size, digest).descriptor, "rb")
    except OSError as error:
        raise StoreError(f"{tar_name(shard)}: cannot be opened ({error.strerror})") from error
    with stream:
        yield stream


def choose_evenly(stored: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Choose `count` of some (split, key), evenly over hash order; all of them where there are no more."""
    ordered = sorted(stored, key=lambda item: (hash_position(item[1]), item))
    chosen = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[index] for index in chosen]
