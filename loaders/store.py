"""Read embeddings out of a store."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from configs.errors import StoreError
from shardwriter.catalog import Catalog
from shardwriter.format import NPY_HEADER_BYTES, TAR_SUFFIX, Identity

OPEN_SHARDS = 128
"""Files kept open at a time, well below the usual limit of 1024 for a process."""


class StoreReader:
    """The stored embeddings of one split, as the store was when opened.

    Samples are found by the index, so nothing is scanned; bytes are read with preadv straight to where they are used.
    Safe to send to worker processes: each opens the files anew.

    Attributes:
        identity: What the embeddings were made with.
        keys: Of the stored utterances, in the order of the shards.
        frames: Length of each, `(utterances,)`.
        failures: Keys that the build could not store, and why.
    """

    def __init__(self, catalog: Catalog, split: str) -> None:
        """Open a split. Raises StoreError where its index contradicts the store's identity."""
        held = catalog.split(split)
        newest = np.zeros(len(held.entries), dtype=np.bool_)
        newest[list(held.newest.values())] = True
        rows = np.flatnonzero(newest & pc.is_null(held.entries["error"]).to_numpy(zero_copy_only=False))
        entries = held.entries.take(rows)
        self.store = catalog.store
        self.split = split
        self.identity: Identity = catalog.record.identity
        self.dtype = np.dtype(self.identity.dtype)
        self.keys: list[str] = entries["key"].to_pylist()
        self.frames = entries["frames"].to_numpy().astype(np.int64)
        self.failures = held.failures
        self._row_of = {key: row for row, key in enumerate(self.keys)}
        self._offsets = entries["embedding_offset"].to_numpy() + NPY_HEADER_BYTES
        self._shard_of = held.shard_of_entry[rows]
        self._paths = [self.store / f"{record.shard}{TAR_SUFFIX}" for record in held.shards]
        self._open: OrderedDict[int, int] = OrderedDict()
        lengths = entries["embedding_length"].to_numpy()
        expected = NPY_HEADER_BYTES + self.identity.dim * self.frames * self.dtype.itemsize
        if len(wrong := np.flatnonzero(lengths != expected)):
            row = wrong[0]
            raise StoreError(
                f"{self._paths[self._shard_of[row]]}: {self.keys[row]} has {lengths[row]} bytes, expected "
                f"{expected[row]} for ({self.identity.dim}, {self.frames[row]}) {self.dtype}; the store is damaged, "
                "build it anew"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: str) -> bool:
        return key in self._row_of

    def frames_of(self, key: str) -> int:
        """Length of a stored embedding."""
        return int(self.frames[self._row_of[key]])

    def read_into(self, key: str, out: npt.NDArray[Any]) -> None:
        """Read an embedding, cut to the buffer's frames or with its last column repeated.

        Args:
            key: Of a stored utterance.
            out: `(dim, frames)`, C-contiguous, in the store's dtype.
        """
        row = self._row_of[key]
        found = int(self.frames[row])
        if found == out.shape[1]:
            self._fill(row, out)
            return
        whole = self._whole(row)
        kept = min(found, out.shape[1])
        out[:, :kept] = whole[:, :kept]
        out[:, kept:] = whole[:, -1:]

    def read(self, key: str) -> npt.NDArray[Any]:
        """Read a whole embedding, `(dim, frames)`, in the store's dtype."""
        return self._whole(self._row_of[key])

    def _whole(self, row: int) -> npt.NDArray[Any]:
        whole = np.empty((self.identity.dim, int(self.frames[row])), dtype=self.dtype)
        self._fill(row, whole)
        return whole

    def _fill(self, row: int, out: npt.NDArray[Any]) -> None:
        shard = int(self._shard_of[row])
        count = os.preadv(self._descriptor(shard), [out.data.cast("B")], int(self._offsets[row]))
        if count != out.nbytes:
            raise StoreError(
                f"{self._paths[shard]}: ends {out.nbytes - count} bytes early in {self.keys[row]}; it was cut since "
                "the store was opened. Run inspect-shards --verify, then build-shards."
            )

    def _descriptor(self, shard: int) -> int:
        """An open file of a shard; the one unused for longest is closed where there are many."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        try:
            descriptor = os.open(self._paths[shard], os.O_RDONLY)
        except OSError as error:
            raise StoreError(
                f"{self._paths[shard]}: cannot be opened ({error.strerror}); it was there when the store was opened"
            ) from error
        self._open[shard] = descriptor
        if len(self._open) > OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict()}

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()


def open_reader(store: Path | str, split: str) -> StoreReader:
    """Open a split of a store.

    Raises:
        StoreError: The folder is no store, or has no such split.
    """
    catalog = Catalog.open(Path(store))
    if split not in catalog.splits:
        raise StoreError(f"{store}: has no split {split!r}; it has {', '.join(catalog.splits) or 'none'}")
    return StoreReader(catalog, split)
