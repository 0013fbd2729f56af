"""One split of a store by the names of its utterances: the counterpart of `write_store`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import StoreError, UnknownKeyError
from iianet.wording import did_you_mean
from shardwriter.format.index import Entry, entries_of
from shardwriter.format.names import CUT_KEY, EMBEDDING_MEMBER, SHORTEST_CUT_KEY, split_view_key, unescape_key
from shardwriter.format.sample import read_array, read_member, read_metadata, read_values
from shardwriter.storage.locate import open_storage
from shardwriter.store.snapshot import Snapshot


class StoredSample(NamedTuple):
    """An utterance as `write_store` takes it: its name, its embedding `(dim, frames)`, and its metadata."""

    key: str
    embedding: npt.NDArray[Any]
    metadata: dict[str, Any]


class StoredSplit(Mapping[str, StoredSample]):
    """The stored utterances of a split, or of a view of one, as the store was when opened; made by `open_store`.

    `split[key]` reads an utterance, in the store's dtype, int8 as float16; `key in split`, `len(split)` and iteration
    over the keys open no tar. Keys are names as `write_store` was given them, or as build-shards took them from paths.
    """

    def __init__(self, snapshot: Snapshot, split: str) -> None:
        self.snapshot = snapshot
        self.split = split
        self._entries = snapshot.split(split)
        keys = self._entries.entries["key"].take(pa.array(self._entries.stored_rows)).combine_chunks()
        cut = cut_names(snapshot, split, keys)
        names = (split_view_key(key)[0] for key in keys.to_pylist())
        rows = self._entries.stored_rows.tolist()
        self._rows = {cut.get(key) or unescape_key(key): row for key, row in zip(names, rows, strict=True)}

    def __getitem__(self, key: str) -> StoredSample:
        """Read an utterance.

        Raises:
            UnknownKeyError: None of this name is stored.
            StoreError: It cannot be read.
        """
        entry, tar = self._open(key)
        with tar:
            embedding = read_array(tar, entry, EMBEDDING_MEMBER)
            if embedding.dtype == np.int8:
                embedding = read_values(tar, entry).astype(np.float16)
            return StoredSample(key, embedding, read_metadata(tar, entry))

    def members(self, key: str) -> dict[str, bytes]:
        """Content of each of an utterance's members. Raises as `split[key]`."""
        entry, tar = self._open(key)
        with tar:
            return {member: read_member(tar, entry, member) for member in entry.members}

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _open(self, key: str) -> tuple[Entry, IO[bytes]]:
        if key not in self._rows:
            hint = did_you_mean(str(key), self._rows) or "; the split is empty"
            raise UnknownKeyError(f"{self.snapshot.storage.name}: {self.split} holds no utterance {key!r}{hint}")
        row = self._rows[key]
        record = self._entries.shards[int(self._entries.shard_of_entry[row])]
        entry = entries_of(self.split, record.shard, self._entries.entries.slice(row, 1))[0]
        return entry, self.snapshot.open_tar(record)


def open_store(path: Path | str, split: str = "train") -> StoredSplit:
    """Open a split of a store, to read utterances by their keys.

    Args:
        path: Folder of the store, or its URL.
        split: train, val or test, or a view such as train_view1.

    Raises:
        StoreError: There is no such store or split, or it is damaged.
    """
    return StoredSplit(open_snapshot(path, split), split)


def open_snapshot(path: Path | str, split: str) -> Snapshot:
    """Open a store of which a split is to be read. Raises StoreError where there is no such store or split."""
    snapshot = Snapshot.open(open_storage(path))
    if split not in snapshot.splits:
        raise StoreError(f"{path}: has no split {split!r}; it has {', '.join(snapshot.splits) or 'none'}")
    return snapshot


def cut_names(snapshot: Snapshot, split: str, keys: pa.Array) -> dict[str, str]:
    """Names of the keys that were cut, which `unescape_key` cannot give back, by key without its view."""
    long = keys.filter(pc.greater_equal(pc.binary_length(keys), SHORTEST_CUT_KEY))  # as a rule there are none
    cut = long.filter(pc.match_substring_regex(long, CUT_KEY))
    if not len(cut):
        return {}
    rows = snapshot.planned_rows(split, ("key", "utterance"))
    found = rows.filter(pc.is_in(rows["key"], value_set=cut)).to_pylist()
    return {split_view_key(row["key"])[0]: row["utterance"] for row in found}
