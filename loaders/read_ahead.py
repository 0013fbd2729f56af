"""Read shards before they are needed, and check each against its digest, once a run."""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
import xxhash

from iianet.errors import StoreError
from loaders.order import Indices
from shardwriter.storage.mirror import drop_copy, file_name, mirror_at, open_tar_file

CHUNK_BYTES = 4 << 20
"""Read at a time: what reading ahead holds in memory; the rest stays in the page cache, which gives way."""
DOWNLOADS = 4
"""Shards that each process downloads at a time, where they lie behind a URL."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of those that read one set of shards this one is: its number, and how many there are."""

    number: int
    of: int


class ReadAhead:
    """Warms the page cache with what comes next, and finds damage before it is trained on.

    A shard's first reading is whole and checks its digest; later the system is only told that it will be needed. Every
    shard is read by one of those that share it, so that nothing is checked twice in a run.

    What lies behind a URL is downloaded, several shards at a time.

    Args:
        paths: Of the tars.
        sizes: Bytes of each, as its index says.
        digests: xxh3_64 of each, hexadecimal, likewise.
        windows: How many windows of the order to be ahead; 0 neither reads ahead nor checks.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], digests: Sequence[str], windows: int) -> None:
        self.paths = paths
        self.sizes = sizes
        self.digests = digests
        self.windows = windows
        # Shared, since workers that are started anew each epoch would check everything again.
        self.checked = torch.zeros(len(paths), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]
        self.num_threads = DOWNLOADS if any(map(mirror_at, {path.parent for path in paths})) else 1

    def follow(self, shard: Indices, window: Indices, share: Share) -> "Following":
        """Begin an epoch.

        Args:
            shard: Read at each position, -1 where none is, `(positions,)`.
            window: Of each position, `(positions,)`.
            share: Which of the shards are ours.
        """
        ours = (shard >= 0) & (shard % share.of == share.number)
        pairs = np.unique(window[ours] * len(self.paths) + shard[ours]) if self.windows else np.empty(0, np.int64)
        return Following(self, deque(divmod(int(pair), len(self.paths)) for pair in pairs))

    def read(self, shard: int) -> None:
        """Read one shard. Raises StoreError where it is not what its index says."""
        try:
            descriptor, is_checked = open_tar_file(self.paths[shard], self.sizes[shard], self.digests[shard])
            try:
                self.checked[shard] |= is_checked
                if self.checked[shard]:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                else:
                    self._check(shard, descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(
                f"{file_name(self.paths[shard])}: cannot be read ({error.strerror}); it was there when the store was "
                "opened"
            ) from error

    def _check(self, shard: int, descriptor: int) -> None:
        digest, buffer, offset = xxhash.xxh3_64(), bytearray(CHUNK_BYTES), 0
        while count := os.preadv(descriptor, [buffer], offset):
            digest.update(memoryview(buffer)[:count])
            offset += count
        if (found := digest.hexdigest()) != self.digests[shard]:
            cure = "Delete it and run build-shards, which writes it again."
            if drop_copy(self.paths[shard], self.digests[shard]):
                cure = "The copy in the cache is deleted; go on with --resume last, and it is fetched anew."
            raise StoreError(
                f"{file_name(self.paths[shard])}: its digest is {found}, and its index says {self.digests[shard]}: it "
                f"was damaged after it was written. {cure}"
            )
        self.checked[shard] = True


class Following:
    """An epoch being read ahead of, in a thread; leaving the block stops it."""

    def __init__(self, reader: ReadAhead, waiting: deque[tuple[int, int]]) -> None:
        self.reader = reader
        self._waiting = waiting
        self._running: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(reader.num_threads, thread_name_prefix="read-ahead") if waiting else None

    def __enter__(self) -> "Following":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def reach(self, window: int) -> None:
        """Let reading run ahead of a window. Raises StoreError where a shard was found to be damaged."""
        while self._waiting and self._waiting[0][0] <= window + self.reader.windows:
            assert self._pool is not None
            self._running.append(self._pool.submit(self.reader.read, self._waiting.popleft()[1]))
        while self._running and self._running[0].done():
            self._running.popleft().result()

    def finish(self) -> None:
        """Wait for what runs. Raises StoreError where a shard was found to be damaged."""
        while self._running:
            self._running.popleft().result()
