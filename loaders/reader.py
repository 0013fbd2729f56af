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

from iianet.errors import StoreError
from loaders.order import Indices
from shardwriter.format.index import ShardRecord
from shardwriter.format.names import NPY_HEADER_BYTES, TAR_SUFFIX, VIEW_MARK, Identity, parse_view_split
from shardwriter.format.plan import SHARD_COLUMNS
from shardwriter.format.quantize import dequantize
from shardwriter.storage.locate import Cache, store_folder
from shardwriter.storage.mirror import OPEN_DELETED, file_name, has_copy, mirror_at, open_tar_file
from shardwriter.store.catalog import Catalog, SplitCatalog

READ_COLUMNS = ("key", "frames", "embedding_offset", "embedding_length", "scale_offset", "audio_offset", "error")
"""Of the index; what only builds look at would double the memory of a large store."""
SCALE_DTYPE = np.dtype(np.float32)
OPEN_SHARDS = 128
"""Files kept open at a time by all views of a split, well below the usual limit of 1024 for a process."""


class StoreReader:
    """The stored embeddings of one split, or of one view of it, as the store was when opened.

    Samples are found by the index, so nothing is scanned. Safe to send to worker processes.

    Attributes:
        identity: What the embeddings were made with.
        keys: Of the stored utterances, without their view, in the order of the shards, `(utterances,)`.
        frames: Length of each, `(utterances,)`.
        shard_of: Index into `shards` of each, `(utterances,)`.
        shards: The complete shards.
        dtype: Of what is read: the stored one, but float16 for int8.
        failures: Keys that the build could not store, and why.
    """

    def __init__(self, catalogs: Sequence[Catalog], split: str) -> None:
        """Open a split. Raises StoreError where an index contradicts its store's identity, or stores each other."""
        self.stores = tuple(catalog.store for catalog in catalogs)
        self._holds = [catalog.hold for catalog in catalogs]
        self.split = split
        self.identity: Identity = catalogs[0].record.identity
        refuse_unlike(catalogs)
        held = [catalog.split(split, READ_COLUMNS) for catalog in catalogs]
        entries = pa.concat_tables([_stored_entries(part) for part in held])
        self.keys: pa.Array = _base_keys(entries["key"], split)
        self.frames = _numbers(entries["frames"])
        self.shards: tuple[ShardRecord, ...] = tuple(record for part in held for record in part.shards)
        self.shard_of = _shard_of(held)
        self.failures = {key: reason for part in held for key, reason in part.failures.items()}
        self.files = ShardFiles(
            [
                catalog.store / f"{record.shard}{TAR_SUFFIX}"
                for catalog, part in zip(catalogs, held, strict=True)
                for record in part.shards
            ],
            [record.tar_size for record in self.shards],
            [record.tar_digest for record in self.shards],
        )
        self._stored_dtype = np.dtype(self.identity.dtype)
        self.quantized = self._stored_dtype == np.int8
        self.dtype = np.dtype(np.float16) if self.quantized else self._stored_dtype
        self._offsets = _numbers(entries["embedding_offset"]) + NPY_HEADER_BYTES
        self._scale_offsets = _numbers(entries["scale_offset"]) + NPY_HEADER_BYTES if self.quantized else None
        embedded = self.identity.audio == "embed" and not parse_view_split(split)[1]  # views have none of their own
        self.audio_offsets = _numbers(entries["audio_offset"]) if embedded else None
        self._refuse_lengths(_numbers(entries["embedding_length"]))
        self._refuse_doubles(held)

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, keys: pa.Array) -> Indices:
        """Row of each key, -1 where it is not stored."""
        return np.asarray(pc.fill_null(pc.index_in(keys, value_set=self.keys), -1), dtype=np.int64)

    def key(self, row: int) -> str:
        """Key of a row."""
        return str(self.keys[row])

    def read_into(self, row: int, out: npt.NDArray[Any], start: int = 0) -> None:
        """Read a segment of an embedding; where it is too short, its last column is repeated.

        Args:
            row: Of the utterance.
            out: `(dim, frames)`, in `dtype`.
            start: First frame of the segment.
        """
        first = min(start, int(self.frames[row]) - 1)
        kept = min(int(self.frames[row]) - first, out.shape[1])
        self._copy(row, first, out[:, :kept])
        out[:, kept:] = out[:, kept - 1 : kept]

    def read_rows(self, rows: Indices, out: npt.NDArray[Any]) -> None:
        """Read some embeddings; the columns behind the end of shorter ones are zero.

        Args:
            rows: Of the utterances.
            out: `(rows, dim, frames)`, C-contiguous, in `dtype`, with at least as many frames as the longest has.
        """
        lengths = self.frames[rows]
        if self.quantized or (lengths != out.shape[2]).any():
            for row, length, one in zip(rows.tolist(), lengths.tolist(), out, strict=True):
                self._copy(row, 0, one[:, :length])
                one[:, length:] = 0
            return
        shards, offsets, size = self.shard_of[rows].tolist(), self._offsets[rows].tolist(), out[:1].nbytes
        content = {shard: self.files.content(shard) for shard in set(shards)}
        stored = [content[shard][offset : offset + size] for shard, offset in zip(shards, offsets, strict=True)]
        np.concatenate(stored, out=out.reshape(-1).view(np.uint8))  # one call: Python's share would be a third

    def read(self, row: int) -> npt.NDArray[Any]:
        """Read a whole embedding, `(dim, frames)`, in `dtype`."""
        whole = np.empty((self.identity.dim, int(self.frames[row])), dtype=self.dtype)
        self._copy(row, 0, whole)
        return whole

    def stored_bytes(self, row: int) -> int:
        """Bytes that reading an embedding takes."""
        scale = SCALE_DTYPE.itemsize * self.quantized
        return self.identity.dim * (int(self.frames[row]) * self._stored_dtype.itemsize + scale)

    def _copy(self, row: int, first: int, out: npt.NDArray[Any]) -> None:
        """Copy the frames from `first` on into `(dim, frames)`."""
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

    def _refuse_lengths(self, lengths: Indices) -> None:
        """Raise StoreError where the index and the identity do not fit each other."""
        expected = NPY_HEADER_BYTES + self.identity.dim * self.frames * self._stored_dtype.itemsize
        if len(wrong := np.flatnonzero(lengths != expected)):
            row = int(wrong[0])
            raise StoreError(
                f"{self.files.paths[self.shard_of[row]]}: {self.key(row)} has {lengths[row]} bytes, expected "
                f"{expected[row]} for ({self.identity.dim}, {self.frames[row]}) {self._stored_dtype}; the store is "
                "damaged, build it anew"
            )

    def _refuse_doubles(self, held: Sequence[SplitCatalog]) -> None:
        """Raise StoreError where two stores have one key."""
        if len(held) == 1 or len(pc.unique(self.keys)) == len(self.keys):
            return
        counted = pc.value_counts(self.keys)
        key = counted.filter(pc.greater(pc.struct_field(counted, "counts"), 1))[0]["values"].as_py()
        rows = np.flatnonzero(np.asarray(pc.equal(self.keys, key)))
        paths = " and ".join(str(self.files.paths[self.shard_of[row]]) for row in rows)
        raise StoreError(
            f"{paths} both hold {key!r}, so it is not clear which to train from. Build the stores with "
            "datamodule.data_config.key_from: path and a common data_root, so that keys are paths."
        )


def refuse_unlike(catalogs: Sequence[Catalog]) -> None:
    """Raise StoreError where stores that are to be trained from together were not made alike."""
    first = catalogs[0]
    for other in catalogs[1:]:
        ours, theirs = first.record.identity, other.record.identity
        differences = ours.differences(theirs)
        differences += [
            f"{name}: {getattr(ours, name)} here, {getattr(theirs, name)} there"
            for name in ("dtype", "audio")
            if getattr(ours, name) != getattr(theirs, name)
        ]
        if differences:
            raise StoreError(
                f"{first.store} and {other.store} were not made alike ({'; '.join(differences)}), so they cannot be "
                "trained from together. Build both with one config and the same flags."
            )


def open_reader(store: Path | str, split: str) -> StoreReader:
    """Open a split of a store, in its folder or behind a URL.

    Raises:
        StoreError: The folder is no store, or has no such split.
    """
    catalog = Catalog.open_to_read(store_folder(store, Cache.at()), SHARD_COLUMNS)
    if split not in catalog.splits:
        raise StoreError(f"{store}: has no split {split!r}; it has {', '.join(catalog.splits) or 'none'}")
    reader = StoreReader([catalog], split)
    pa.default_memory_pool().release_unused()  # Arrow would keep what the plans took, a third of it all
    return reader


def _base_keys(keys: pa.ChunkedArray, split: str) -> pa.Array:
    whole = keys.combine_chunks()
    if parse_view_split(split)[1]:
        whole = pc.replace_substring_regex(whole, pattern=f"{VIEW_MARK}.*$", replacement="")
    return whole


def _stored_entries(held: SplitCatalog) -> pa.Table:
    if len(held.stored_rows) == len(held.entries):  # as a rule; no copy of a large table then
        return held.entries
    return held.entries.take(pa.array(held.stored_rows))


def _numbers(column: pa.ChunkedArray) -> Indices:
    return np.asarray(column.combine_chunks(), dtype=np.int64)


def _shard_of(held: Sequence[SplitCatalog]) -> Indices:
    before = np.cumsum([0, *(len(part.shards) for part in held)])
    return np.concatenate(
        [part.shard_of_entry[part.stored_rows] + first for part, first in zip(held, before[:-1], strict=True)]
    ).astype(np.int64)


class ShardFiles:
    """Bytes of shards, out of memory maps. Safe to send to worker processes: each opens the files anew.

    A copy out of a map takes two thirds of the time of a preadv (see benchmarks/), but a map of a file that was cut
    kills the process instead of raising an error; so the size of the file is asked for before each use. The bytes are
    valid as long as the file is: copy them at once.

    Attributes:
        paths: Of the tars.
        sizes: Bytes of each, as its index says.
        digests: xxh3_64 of each, likewise; what lies behind a URL is checked against it when it arrives.
        most_open: Files kept open at a time.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], digests: Sequence[str]) -> None:
        self.paths = paths
        self.sizes = sizes
        self.digests = digests
        self.most_open = OPEN_SHARDS
        self._open: OrderedDict[int, tuple[mmap.mmap, npt.NDArray[np.uint8]]] = OrderedDict()

    def content(self, shard: int) -> npt.NDArray[np.uint8]:
        """A shard's bytes, `(size,)`, read-only, without a copy.

        Raises:
            StoreError: The shard is gone, or has another size than its index says.
        """
        opened = self._open.get(shard)
        if opened is None:
            opened = self._map(shard)
        else:
            self._open.move_to_end(shard)
        if (size := opened[0].size()) != self.sizes[shard]:
            raise StoreError(
                f"{file_name(self.paths[shard])}: has {size:,} bytes now, and had {self.sizes[shard]:,} when the store "
                "was opened. Run inspect-shards --verify, then build-shards."
            )
        return opened[1]

    def _map(self, shard: int) -> tuple[mmap.mmap, npt.NDArray[np.uint8]]:
        """Map a shard; the one unused for longest is closed where there are many."""
        try:
            descriptor, _ = open_tar_file(self.paths[shard], self.sizes[shard], self.digests[shard])
            try:
                mapped = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)  # the map has its own
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise StoreError(
                f"{file_name(self.paths[shard])}: cannot be opened ({error}); it was there when the store was opened"
            ) from error
        self._open[shard] = mapped, np.frombuffer(mapped, dtype=np.uint8)
        if len(self._open) > self.most_open:
            self._open.popitem(last=False)  # unmapped when the last view of it is gone
        if mirror_at(self.paths[shard].parent):
            for other in list(self._open)[:-OPEN_DELETED]:
                if not has_copy(self.paths[other], self.digests[other]):
                    del self._open[other]
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict()}
