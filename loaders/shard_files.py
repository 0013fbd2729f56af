"""Bytes of shards, out of memory maps.

A copy out of a map takes two thirds of the time of a preadv (see benchmarks/), but a map of a file that was cut kills
the process instead of raising an error; so the size of the file is asked for before each use. The bytes are valid as
long as the file is: copy them at once.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iianet.errors import StoreError
from shardwriter.storage.mirror import OPEN_DELETED, file_name, has_copy, mirror_at, open_tar_file

OPEN_SHARDS = 128
"""Files kept open at a time by all views of a split, well below the usual limit of 1024 for a process."""


class ShardFiles:
    """Tars that are read from. Safe to send to worker processes: each opens the files anew.

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
