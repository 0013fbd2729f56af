"""A store as inspect-shards sees it: all that can be read, and what is wrong with the rest."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa

from iianet.errors import StoreError, UnreadableError
from shardwriter.format.index import Entry, ShardRecord, entries_of
from shardwriter.format.names import hash_position, tar_name
from shardwriter.format.plan import PlanHeader
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
        pending: The plan of an --overwrite or --compact in progress, if there is one and it could be read.
        unreadable: Why others could not be read.
    """

    snapshot: Snapshot
    splits: Mapping[str, SplitEntries]
    pending: PlanHeader | None
    unreadable: Sequence[str]

    @classmethod
    def open(cls, storage: Storage) -> "InspectedStore":
        """Open a store. Raises StoreError where it is none, or its record or active plans are damaged."""
        snapshot = Snapshot.open(storage)
        splits: dict[str, SplitEntries] = {}
        unreadable: list[str] = []
        for split in snapshot.splits:
            try:
                splits[split] = snapshot.split(split)
            except StoreError as error:
                unreadable.append(str(error))
        pending = None
        try:
            pending = snapshot.pending
        except StoreError as error:
            unreadable.append(str(error))
        return cls(snapshot=snapshot, splits=splits, pending=pending, unreadable=unreadable)

    @property
    def storage(self) -> Storage:
        """Where the store lies."""
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
        """What is missing because it cannot be read, and the cure."""
        cure = f"so its utterances count as missing; put it back, or {self.identity.writes_again}"
        damaged = [shard for entries in self.splits.values() for shard in entries.damaged]
        return [
            *self.unreadable,
            *(f"{tar_name(shard)}: is gone, or does not fit its index, {cure}" for shard in damaged),
        ]

    def stored(self, split: str) -> list[str]:
        """Keys whose newest entry is an embedding, shard by shard."""
        entries = self.splits[split]
        keys: list[str] = entries.entries["key"].take(pa.array(entries.stored_rows)).to_pylist()
        return keys

    def entry(self, split: str, key: str) -> Entry:
        """The newest entry of a key."""
        entries, row = self.splits[split], self.splits[split].newest[key]
        return entries_of(split, self._record(split, key).shard, entries.entries.slice(row, 1))[0]

    @contextmanager
    def open_tar(self, entry: Entry) -> Iterator[IO[bytes]]:
        """Open the tar of a newest entry. Raises StoreError where it cannot be opened or read, or is damaged."""
        try:
            with self.snapshot.open_tar(self._record(entry.split, entry.key)) as tar:
                yield tar
        except OSError as error:
            raise UnreadableError(entry.where, error) from error

    def _record(self, split: str, key: str) -> ShardRecord:
        entries = self.splits[split]
        return entries.shards[int(entries.shard_of_entry[entries.newest[key]])]


def choose_evenly(stored: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Choose `count` of some (split, key), evenly over hash order; all of them where there are no more."""
    ordered = sorted(stored, key=lambda item: (hash_position(item[1]), item))
    chosen = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[index] for index in chosen]
