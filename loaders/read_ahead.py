"""Read shards before they are needed, and check each against its digest, once a run."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from iianet.errors import StoreError
from loaders.order import Indices
from loaders.reader import ShardFiles
from loaders.workers import shared_zeros

CHUNK_BYTES = 4 << 20
"""Bytes read at a time: the memory that reading ahead takes; the rest stays in the page cache, which gives way."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """The number of one of those that share some work, and how many they are."""

    number: int
    of: int


class ReadAhead:
    """Warms the page cache with the shards that come next, and finds damage before it is trained on.

    A shard's first reading is whole and checks its digest; later the system is only advised that it will be needed.
    Every shard is read by one of those that share it, so that nothing is checked twice in a run. The shards of a remote
    store are downloaded, several at a time.

    Args:
        files: Shards of each reader, numbered from the first of the first to the last of the last.
        windows: Windows of the order to be ahead; 0 neither reads ahead nor checks.
        give_up: Gets the number of a shard that is not as its index says, and the error; by default that is raised.
    """

    def __init__(
        self, files: Sequence[ShardFiles], windows: int, give_up: Callable[[int, StoreError], None] | None = None
    ) -> None:
        self.tars = [tar for each in files for tar in each.tars]
        self.windows = windows
        self._give_up = give_up
        # Shared, since workers that are started again in each epoch would check everything again.
        self.checked = shared_zeros(len(self.tars), torch.bool)
        self.num_threads = max((tar.storage.num_downloads for tar in self.tars[:1]), default=1)

    @contextmanager
    def start_epoch(self, shard: Indices, window: Indices, share: Share) -> Iterator["EpochReadAhead"]:
        """Read ahead of an epoch, in threads that end with the block.

        Args:
            shard: Number of the shard read at each position, -1 for none, `(positions,)`.
            window: Window of each position, `(positions,)`.
            share: Part of the shards to read here.
        """
        read = shard >= 0
        pairs = np.unique(window[read] * len(self.tars) + shard[read]) if self.windows else np.empty(0, np.int64)
        due = [divmod(int(pair), len(self.tars)) for pair in pairs]
        ours = deque(pair for pair in due if pair[1] % share.of == share.number)
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="read-ahead")
        try:
            yield EpochReadAhead(self, pool, ours, deque(due))
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, shard: int) -> None:
        """Read one shard. Raises StoreError where it is not as its index says, and nobody else is to know."""
        try:
            self._read(shard)
        except StoreError as error:
            if self._give_up is None:
                raise
            self._give_up(shard, error)
            self.checked[shard] = True

    def _read(self, shard: int) -> None:
        try:
            descriptor, is_checked = self.tars[shard].open()
            try:
                self.checked[shard] |= is_checked
                if self.checked[shard]:
                    _will_need(descriptor)
                else:
                    self._check(shard, descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(
                f"{self.tars[shard].where}: cannot be read ({error.strerror}); it was there when the store was opened"
            ) from error

    def _check(self, shard: int, descriptor: int) -> None:
        digest, buffer, offset = xxhash.xxh3_64(), bytearray(CHUNK_BYTES), 0
        while count := os.preadv(descriptor, [buffer], offset):
            digest.update(memoryview(buffer)[:count])
            offset += count
        if (found := digest.hexdigest()) != self.tars[shard].digest:
            cure = "Delete it and run build-shards, which writes it again."
            if self.tars[shard].forget():
                cure = "The copy in the cache is deleted; the next run downloads it again."
            raise StoreError(
                f"{self.tars[shard].where}: its digest is {found}, and its index says {self.tars[shard].digest}: it "
                f"was damaged after it was written. {cure}"
            )
        self.checked[shard] = True


class EpochReadAhead:
    """An epoch that is read ahead of.

    Attributes:
        waiting: Window and number of each shard to be read here.
        due: The same of all shards, also of those that others read.
    """

    def __init__(
        self, reader: ReadAhead, pool: ThreadPoolExecutor, waiting: deque[tuple[int, int]], due: deque[tuple[int, int]]
    ) -> None:
        self.reader = reader
        self.waiting, self.due = waiting, due
        self._pool = pool
        self._running: deque[tuple[int, Future[None]]] = deque()

    def advance(self, window: int) -> None:
        """Start reading what is ahead of a window. Raises StoreError where a damaged shard was found."""
        while self.waiting and self.waiting[0][0] <= window + self.reader.windows:
            ahead, shard = self.waiting.popleft()
            self._running.append((ahead, self._pool.submit(self.reader.read, shard)))
        while self._running and self._running[0][1].done():
            self._running.popleft()[1].result()

    def settle(self, window: int) -> None:
        """Advance, and wait until each shard of the windows up to this one was checked once: before it is used."""
        self.advance(window)
        while self._running and self._running[0][0] <= window:
            self._running.popleft()[1].result()
        while self.due and self.due[0][0] <= window:
            shard = self.due.popleft()[1]
            if not self.reader.checked[shard]:  # another worker or rank is to read it, and has not done so
                self.reader.read(shard)

    def finish(self) -> None:
        """Wait for what is being read. Raises StoreError where a damaged shard was found."""
        while self._running:
            self._running.popleft()[1].result()


def _will_need(descriptor: int) -> None:
    """Let the system read a file ahead; macOS knows no such advice."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
