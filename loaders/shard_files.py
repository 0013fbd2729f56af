"""Bytes out of shards, by preadv straight to where they are used."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import StoreError

OPEN_SHARDS = 128
"""Files kept open at a time, well below the usual limit of 1024 for a process."""


class ShardFiles:
    """Tars that are read from. Safe to send to worker processes: each opens the files anew.

    Attributes:
        paths: Of the tars.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._open: OrderedDict[int, int] = OrderedDict()

    def read_into(self, shard: int, offset: int, out: memoryview) -> None:
        """Fill a buffer of bytes from an offset of a shard on.

        Raises:
            StoreError: The shard is gone, or ends too early.
        """
        count = os.preadv(self.descriptor(shard), [out], offset)
        if count != out.nbytes:
            raise StoreError(
                f"{self.paths[shard]}: ends {out.nbytes - count} bytes before the end of the sample at byte {offset}; it "
                "was cut since the store was opened. Run inspect-shards --verify, then build-shards."
            )

    def descriptor(self, shard: int) -> int:
        """An open file of a shard; the one unused for longest is closed where there are many."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        try:
            descriptor = os.open(self.paths[shard], os.O_RDONLY)
        except OSError as error:
            raise StoreError(
                f"{self.paths[shard]}: cannot be opened ({error.strerror}); it was there when the store was opened"
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
