"""Read embeddings out of a store, or out of several built with the same settings: rows by the index, bytes by map."""

import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import StoreError, UnknownKeyError, UnreachableError
from loaders.order import Indices
from shardwriter.format.names import EMBEDDING_MEMBER, SCALE_MEMBER, VIEW_MARK, parse_view_split, tar_name
from shardwriter.format.npy import NPY_HEADER_BYTES
from shardwriter.format.record import Identity
from shardwriter.format.sample import dequantize, expected_headers
from shardwriter.storage.storage import StoredTar
from shardwriter.store.entries import SplitEntries
from shardwriter.store.snapshot import Snapshot
from shardwriter.store.stored_split import open_snapshot

READ_COLUMNS = ("key", "frames", "embedding_offset", "embedding_length", "scale_offset", "audio_offset", "error")
"""Columns of the index; those that only builds need would double the memory of a large store."""
METADATA_COLUMNS = ("metadata_offset", "metadata_length")
"""Those that are needed to read what a sample's json says, too."""
SCALE_DTYPE = np.dtype(np.float32)
OPEN_SHARDS = 128
"""Files kept open at a time by all views of a split, well below the usual limit of 1024 for a process."""
KEPT_AFTER_DELETION = 16
"""Copies that a cache has deleted take disk as long as they are open: so many of those used last are kept."""


class StoreReader:
    """The stored embeddings of one split, or of one view of it, as the store was when opened.

    Samples are found by the index, so nothing is scanned. Safe to send to worker processes.

    Attributes:
        identity: Encoder, preprocessing and layout of the embeddings.
        stores: Names of the stores.
        keys: Keys of the stored utterances, without their view, in the order of the shards, `(utterances,)`.
        frames: Length of each embedding, `(utterances,)`.
        shard_of: Number of each utterance's shard in `files`, `(utterances,)`.
        files: Complete shards.
        dtype: Dtype of what is read: the stored one, but float16 for int8.
        audio_offsets: First byte of each utterance's audio.npy, `(utterances,)`; None where audio is not stored.
        failures: Keys that the build could not store, and why.
    """

    def __init__(self, snapshots: Sequence[Snapshot], split: str, *, with_metadata: bool = False) -> None:
        """Open a split. Raises StoreError where an index contradicts its store's identity, or stores each other."""
        refuse_different_settings(snapshots)
        self.stores = tuple(snapshot.storage.name for snapshot in snapshots)
        self._holds = [snapshot.hold for snapshot in snapshots]  # shards that a build replaces meanwhile are kept
        self.identity: Identity = snapshots[0].identity
        columns = (*READ_COLUMNS, *METADATA_COLUMNS) if with_metadata else READ_COLUMNS
        parts = [snapshot.split(split, columns) for snapshot in snapshots]
        entries = pa.concat_tables([_stored_entries(part) for part in parts])
        self.files = ShardFiles(
            [
                StoredTar(snapshot.storage, tar_name(record.shard), record.tar_size, record.tar_digest)
                for snapshot, part in zip(snapshots, parts, strict=True)
                for record in part.shards
            ]
        )
        is_view = parse_view_split(split)[1] > 0
        keys = entries["key"].combine_chunks()
        self.keys: pa.Array = pc.replace_substring_regex(keys, f"{VIEW_MARK}.*$", "") if is_view else keys
        self.frames = _integers(entries["frames"])
        self.shard_of = _shard_of(parts)
        self.failures = {key: reason for part in parts for key, reason in part.failures.items()}
        self._stored_dtype = np.dtype(self.identity.dtype)
        is_int8 = self._stored_dtype == np.int8
        self.dtype = np.dtype(np.float16) if is_int8 else self._stored_dtype
        self._offsets = _integers(entries["embedding_offset"]) + NPY_HEADER_BYTES
        self._scale_offsets = _integers(entries["scale_offset"]) + NPY_HEADER_BYTES if is_int8 else None
        has_audio = self.identity.audio == "embed" and not is_view
        self.audio_offsets = _integers(entries["audio_offset"]) if has_audio else None
        self._metadata = [_integers(entries[column]) for column in METADATA_COLUMNS] if with_metadata else None
        self._is_checked = np.zeros(len(keys), dtype=np.bool_)
        if len(snapshots) > 1:
            self._refuse_common_keys()

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, keys: pa.Array) -> Indices:
        """Row of each key, -1 where it is not stored."""
        return np.asarray(pc.fill_null(pc.index_in(keys, value_set=self.keys), -1), dtype=np.int64)

    def store_of(self, rows: Indices) -> Indices:
        """Number in `stores` of the one that holds each of some rows, -1 for the row -1."""
        store_of_shard = np.array([self.stores.index(tar.storage.name) for tar in self.files.tars], dtype=np.int64)
        stores = np.full_like(rows, -1)
        stores[rows >= 0] = store_of_shard[self.shard_of[rows[rows >= 0]]]
        return stores

    def key(self, row: int) -> str:
        """Key of a row."""
        return str(self.keys[row])

    def read_segment(self, row: int, start: int, out: npt.NDArray[Any]) -> int:
        """Read a segment of an embedding; where it is too short, its last column is repeated.

        Args:
            row: Row of the utterance.
            start: First frame of the segment.
            out: `(dim, frames)`, in `dtype`, to be filled.

        Returns:
            Bytes of the whole stored embedding.
        """
        first = min(start, int(self.frames[row]) - 1)
        kept = min(int(self.frames[row]) - first, out.shape[1])
        self._copy(row, first, out[:, :kept])
        out[:, kept:] = out[:, kept - 1 : kept]
        return self.stored_bytes(row)

    def read_rows(self, rows: Indices, out: npt.NDArray[Any]) -> None:
        """Read some embeddings; the columns after the end of shorter ones are zero.

        Args:
            rows: Rows of the utterances.
            out: `(rows, dim, frames)`, C-contiguous, in `dtype`, with at least as many frames as the longest has.
        """
        _refuse_no_row(rows.min(initial=0))
        self._check(rows)
        lengths = self.frames[rows]
        if self._scale_offsets is not None or (lengths != out.shape[2]).any():
            for row, length, one in zip(rows.tolist(), lengths.tolist(), out, strict=True):
                self._copy(row, 0, one[:, :length])
                one[:, length:] = 0
            return
        shards, offsets, size = self.shard_of[rows].tolist(), self._offsets[rows].tolist(), out[:1].nbytes
        content = {shard: self.files.content(shard) for shard in set(shards)}
        stored = [content[shard][offset : offset + size] for shard, offset in zip(shards, offsets, strict=True)]
        np.concatenate(stored, out=out.reshape(-1).view(np.uint8))  # one call: a loop would be a third of the time

    def read(self, row: int) -> npt.NDArray[Any]:
        """Read a whole embedding, `(dim, frames)`, in `dtype`."""
        _refuse_no_row(row)
        whole = np.empty((self.identity.dim, int(self.frames[row])), dtype=self.dtype)
        self._copy(row, 0, whole)
        return whole

    def read_metadata(self, rows: Indices, files: "ShardFiles") -> list[bytes]:
        """Content of the json members of some rows, out of `files` as those of this reader; for `with_metadata`."""
        assert self._metadata is not None
        offsets, lengths = (column[rows].tolist() for column in self._metadata)
        places = zip(self.shard_of[rows].tolist(), offsets, lengths, strict=True)
        return [files.content(shard)[start : start + length].tobytes() for shard, start, length in places]

    def stored_bytes(self, row: int) -> int:
        """Bytes of a stored embedding, with its scale."""
        scale = 0 if self._scale_offsets is None else SCALE_DTYPE.itemsize
        return self.identity.dim * (int(self.frames[row]) * self._stored_dtype.itemsize + scale)

    def _copy(self, row: int, first: int, out: npt.NDArray[Any]) -> None:
        """Copy the frames from `first` on into `(dim, frames)`."""
        if not self._is_checked[row]:
            self._check(np.array([row]))
        shard, dim, frames = int(self.shard_of[row]), self.identity.dim, int(self.frames[row])
        content, offset = self.files.content(shard), int(self._offsets[row])
        whole = content[offset : offset + dim * frames * self._stored_dtype.itemsize].view(self._stored_dtype)
        stored = whole.reshape(dim, frames)[:, first : first + out.shape[1]]
        if self._scale_offsets is None:
            out[:] = stored
            return
        scale_at = int(self._scale_offsets[row])
        scale = content[scale_at : scale_at + dim * SCALE_DTYPE.itemsize].view(SCALE_DTYPE)
        dequantize(stored, scale, out=out)

    def _check(self, rows: Indices) -> None:
        """Look at the headers of some embeddings before the first bytes of each are served.

        Raises:
            StoreError: One is not of the shape and type that the index and the store say.
        """
        rows = rows[~self._is_checked[rows]]
        if not len(rows):
            return
        shards, frames = self.shard_of[rows].tolist(), self.frames[rows].tolist()
        content = {shard: self.files.content(shard) for shard in set(shards)}
        headers = {length: expected_headers(self.identity, length) for length in set(frames)}
        for member, offsets in ((EMBEDDING_MEMBER, self._offsets), (SCALE_MEMBER, self._scale_offsets)):
            if offsets is None:
                continue
            starts = offsets[rows].tolist()
            found = [
                content[shard][start - NPY_HEADER_BYTES : start] for shard, start in zip(shards, starts, strict=True)
            ]
            expected = b"".join([headers[length][member] for length in frames])
            if np.concatenate(found).tobytes() != expected:
                same = np.concatenate(found) == np.frombuffer(expected, np.uint8)
                first = int(np.argmin(same)) // NPY_HEADER_BYTES
                raise StoreError(
                    f"{self.files.tars[shards[first]].where}: {self.key(int(rows[first]))}: {member}: the bytes before "
                    f"{starts[first]:,} are not the header of the array that the index says starts there. "
                    "Run inspect-shards --verify, then build-shards."
                )
        self._is_checked[rows] = True

    def _refuse_common_keys(self) -> None:
        """Raise StoreError where two stores have one key."""
        first = self.rows_of(self.keys)
        if len(again := np.flatnonzero(first != np.arange(len(first)))):
            rows = int(first[again[0]]), int(again[0])
            paths = " and ".join(self.files.tars[self.shard_of[row]].where for row in rows)
            raise StoreError(
                f"{paths} both have {self.key(rows[0])!r}, so it is not clear which to train from. Build the stores "
                "with datamodule.data_config.key_from: path and a common data_root, so that keys are paths."
            )


def refuse_different_settings(snapshots: Sequence[Snapshot]) -> None:
    """Raise StoreError where stores that are read together were not built with the same settings."""
    first = snapshots[0]
    for other in snapshots[1:]:
        ours, theirs = first.identity, other.identity
        if differences := ours.differences(theirs):
            raise StoreError(
                f"{first.storage.name} and {other.storage.name} were built with different settings "
                f"({'; '.join(differences)}), so they cannot be trained from together. "
                "Build both with one config and the same flags."
            )


def open_reader(store: Path | str, split: str) -> StoreReader:
    """Open a split of a store, a folder or a URL. Raises StoreError where there is no such store or split."""
    reader = StoreReader([open_snapshot(store, split)], split)
    pa.default_memory_pool().release_unused()  # Arrow would keep the memory of the plans, a third of all
    return reader


def _refuse_no_row(row: int) -> None:
    if row < 0:  # would be one from the end
        raise UnknownKeyError(f"row {row} of a store: expected at least 0; -1 of rows_of is a key that is not stored")


def _stored_entries(part: SplitEntries) -> pa.Table:
    if len(part.stored_rows) == len(part.entries):  # as a rule; then a large table is not copied
        return part.entries
    return part.entries.take(pa.array(part.stored_rows))


def _integers(column: pa.ChunkedArray) -> Indices:
    return np.asarray(column.combine_chunks(), dtype=np.int64)


def _shard_of(parts: Sequence[SplitEntries]) -> Indices:
    before = np.cumsum([0, *(len(part.shards) for part in parts)])
    return np.concatenate(
        [part.shard_of_entry[part.stored_rows] + first for part, first in zip(parts, before[:-1], strict=True)]
    ).astype(np.int64)


def unreadable(tar: StoredTar, error: OSError | ValueError) -> StoreError:
    """What to raise of a shard that cannot be read: UnreachableError, unless it is gone or empty."""
    is_lost = isinstance(error, (FileNotFoundError, ValueError))
    reason = getattr(error, "strerror", None) or error
    message = f"{tar.where}: cannot be read ({reason}); it was there when the store was opened"
    return StoreError(message) if is_lost else UnreachableError(message)


class ShardFiles:
    """Bytes of shards, out of memory maps. Safe to send to worker processes: each opens the files itself.

    A copy out of a map takes two thirds of the time of a preadv (see benchmarks/), but a map of a file that was cut
    kills the process instead of raising an error; so the size of the file is asked for before each use. The bytes are
    valid as long as the file is: copy them at once.

    Attributes:
        tars: Tars to read; one of a remote store is checked against its digest on arrival.
        most_open: Files kept open at a time.
    """

    def __init__(self, tars: Sequence[StoredTar]) -> None:
        self.tars = tars
        self.most_open = OPEN_SHARDS
        self._open: OrderedDict[int, tuple[mmap.mmap, npt.NDArray[np.uint8]]] = OrderedDict()

    def content(self, shard: int) -> npt.NDArray[np.uint8]:
        """A shard's bytes, `(size,)`, read-only, without a copy. Raises StoreError where it is gone or changed."""
        opened = self._open.get(shard)
        if opened is None:
            opened = self._map(shard)
        else:
            self._open.move_to_end(shard)
        if (size := opened[0].size()) != self.tars[shard].size:
            raise StoreError(
                f"{self.tars[shard].where}: has {size:,} bytes now, and had {self.tars[shard].size:,} when the store "
                "was opened. Run inspect-shards --verify, then build-shards."
            )
        return opened[1]

    def _map(self, shard: int) -> tuple[mmap.mmap, npt.NDArray[np.uint8]]:
        """Map a shard, and close the least recently used one where there are many."""
        try:
            descriptor = self.tars[shard].open().descriptor
            try:
                mapped = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)  # the map has its own
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise unreadable(self.tars[shard], error) from error
        self._open[shard] = mapped, np.frombuffer(mapped, dtype=np.uint8)
        if len(self._open) > self.most_open:
            self._open.popitem(last=False)  # unmapped when the last view of it is gone
        for other in list(self._open)[:-KEPT_AFTER_DELETION]:
            if not self.tars[other].is_kept():
                del self._open[other]
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict()}
