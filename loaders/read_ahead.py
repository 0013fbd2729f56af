"""Read shards before they are needed, and check each against its digest, once a run."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import sleep
from typing import IO

import numpy as np
import torch
from torch.utils.data import get_worker_info

from iianet.errors import StoreError
from loaders.order import Indices
from loaders.reader import ShardFiles, unreadable
from loaders.workers import shared_zeros
from shardwriter.format.digest import digest_of

WAIT_SECONDS = 0.01
"""How long to wait for another worker before looking again."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """The number of one of those that share some work, and how many they are."""

    number: int
    of: int


def worker_share() -> Share:
    """This worker and the others of its loader; alone where there are none."""
    worker = get_worker_info()
    return Share(number=worker.id, of=worker.num_workers) if worker else Share(number=0, of=1)


class ReadAhead:
    """Warms the page cache with the shards that come next, and finds damage before it is trained on.

    A shard's first reading is whole and checks its digest; later the system is only advised that it will be needed.
    The workers of a rank share its shards: what one of them checks, or has checked, the others do not read again in a
    run. Each rank checks what it reads itself. The shards of a remote store are downloaded, several at a time.

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
        self._checked_by = shared_zeros(len(self.tars))  # the worker that is at it, counted from 1
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
        due = (divmod(int(pair), len(self.tars)) for pair in pairs)
        ours = deque(pair for pair in due if pair[1] % share.of == share.number)
        self._checked_by[self._checked_by == share.number + 1] = 0  # of a worker that was ended
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="read-ahead")
        try:
            yield EpochReadAhead(self, pool, ours, share.number)
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, shard: int, number: int = 0) -> bool:
        """Read one shard, as the worker of a number; False where it is being checked already.

        Raises:
            StoreError: It is not as its index says, and nobody else is to know.
        """
        if not self.checked[shard]:
            if self._checked_by[shard]:
                return False
            self._checked_by[shard] = number + 1
        try:
            self._read(shard)
        except StoreError as error:
            if self._give_up is None:
                raise
            self._give_up(shard, error)
            self.checked[shard] = True
        finally:
            self._checked_by[shard] = 0  # after an error the others find it too, instead of waiting
        return True

    def _read(self, shard: int) -> None:
        try:
            descriptor, is_checked = self.tars[shard].open()
            with os.fdopen(descriptor, "rb", buffering=0) as stream:
                self.checked[shard] |= is_checked
                if self.checked[shard]:
                    _will_need(descriptor)
                else:
                    self._check(shard, stream)
        except OSError as error:
            raise unreadable(self.tars[shard], error) from error

    def _check(self, shard: int, stream: IO[bytes]) -> None:
        if (found := digest_of(stream)[0]) != self.tars[shard].digest:
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
    """

    def __init__(
        self, reader: ReadAhead, pool: ThreadPoolExecutor, waiting: deque[tuple[int, int]], number: int
    ) -> None:
        self.reader = reader
        self.waiting = waiting
        self._pool, self._number = pool, number
        self._running: dict[int, Future[bool]] = {}

    def advance(self, window: int) -> None:
        """Start reading what is ahead of a window. Raises StoreError where a damaged shard was found."""
        while self.waiting and self.waiting[0][0] <= window + self.reader.windows:
            shard = self.waiting.popleft()[1]
            if shard not in self._running:  # of two windows
                self._running[shard] = self._pool.submit(self.reader.read, shard, self._number)
        while self._running and self._running[first := next(iter(self._running))].done():
            self._running.pop(first).result()

    def settle(self, window: int, shards: Indices) -> None:
        """Advance, and wait until each of some shards (-1 is none) was checked once: before it is used."""
        self.advance(window)
        for shard in set(shards.tolist()) - {-1} if self.reader.windows else ():
            if (running := self._running.pop(shard, None)) and not running.cancel():
                running.result()
            while not self.reader.checked[shard]:
                if not self.reader.read(shard, self._number):
                    sleep(WAIT_SECONDS)

    def finish(self) -> None:
        """Wait for what is being read. Raises StoreError where a damaged shard was found."""
        while self._running:
            self._running.pop(next(iter(self._running))).result()


def _will_need(descriptor: int) -> None:
    """Let the system read a file ahead; macOS knows no such advice."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
