"""Batches of a split for one rank, and the loader that a Trainer iterates, whose position a checkpoint keeps."""

import atexit
import math
import multiprocessing
import multiprocessing.util  # before our own exit is registered, so that ours comes first
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from iianet.batch import Batch
from loaders.assemble import Assembler
from loaders.order import Order
from loaders.read_ahead import EpochReadAhead, ReadAhead, Share

Item = TypeVar("Item")

_parent: int | None = None
_workers: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


class ExampleDataset(IterableDataset[Batch]):
    """Batches of one rank, from a position of an epoch on; each worker makes every num_workers-th.

    The position lies in shared memory, since persistent workers never see attributes that are set later.

    Args:
        assembler: Makes the batches.
        rank: Number of the rank.
        ranks_here: Ranks on this machine, which share reading ahead.
        read_ahead: Reads the shards ahead; there are none in raw mode.
    """

    def __init__(self, assembler: Assembler, rank: int, ranks_here: range, read_ahead: ReadAhead) -> None:
        self.assembler = assembler
        self.rank = rank
        self.ranks_here = ranks_here
        self.read_ahead = read_ahead
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def order(self) -> Order:
        """Order of the split's examples."""
        return self.assembler.order

    def seek(self, epoch: int, batch: int) -> None:
        """Let the next iteration start at a batch of an epoch."""
        self._position.copy_(torch.tensor([epoch, batch]))

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._position.tolist()
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        window = self.order.epoch(epoch).window
        with self._start_reading_ahead(epoch, start, Share(number=first, of=stride)) as ahead:
            for batch in range(start + first, self.order.num_batches, stride):
                ahead.advance(int(window[self.order.positions(batch, self.rank)].max(initial=0)))
                yield self._batch(epoch, batch)
            ahead.finish()

    def _start_reading_ahead(self, epoch: int, start: int, worker: Share) -> AbstractContextManager[EpochReadAhead]:
        """Start to read ahead of the ranks of this machine, this worker its share."""
        order, stored = self.order.epoch(epoch), self.assembler.stored
        shard = np.full(len(order.example), -1, dtype=np.int64)
        if stored is not None:
            shard = stored.shard_of(self.order.utterance_of_example[order.example], order.view)
        rank = np.arange(len(shard)) % self.order.global_batch // self.order.batch_size
        shard[(rank < self.ranks_here.start) | (rank >= self.ranks_here.stop)] = -1
        shard[: start * self.order.global_batch] = -1  # a resumed epoch does not read them again
        number = (self.rank - self.ranks_here.start) * worker.of + worker.number
        share = Share(number=number, of=len(self.ranks_here) * worker.of)
        return self.read_ahead.start_epoch(shard, order.window, share)

    def _batch(self, epoch: int, batch: int) -> Batch:
        positions = self.order.positions(batch, self.rank)
        if len(positions):
            return self.assembler.batch(epoch, positions.tolist())
        idle = self.assembler.batch(epoch, self.order.positions(batch, rank=self.order.world_size - 1)[:1].tolist())
        # This rank has no row of the last batch, but a step without rows would hang the others.
        return replace(idle, weight=torch.zeros_like(idle.weight), num_examples=0, dropped=())


class TimedLoader(DataLoader[Batch]):
    """A DataLoader of ready batches that measures how long each is waited for; `length` is None where it is not known.

    Attributes:
        epoch_batches: Batches after which the Trainer ends an epoch.
        asked: Time when the latest batch was asked for, time.monotonic().
        waited: Seconds until that batch was there.
    """

    def __init__(
        self, dataset: IterableDataset[Batch], *, length: int | None, num_workers: int, **options: Any
    ) -> None:
        start = ignore_termination if num_workers else None
        super().__init__(dataset, batch_size=None, num_workers=num_workers, worker_init_fn=start, **options)
        self.length = length
        self.epoch_batches = math.inf if length is None else length
        self.asked = self.waited = 0.0

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("the number of batches is not known")
        return self.length

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.asked = time.monotonic()
        for batch in start_workers(super().__iter__):
            self.waited = time.monotonic() - self.asked
            yield batch
            self.asked = time.monotonic()


class BatchLoader(TimedLoader):
    """The loader of a split in its order, with a position that is saved with a checkpoint and resumed from.

    Attributes:
        advance_epoch: Whether each iteration is the next epoch, for training; else it is epoch 0 again.
        epoch: Epoch of the next batch.
        batch: Number of the next batch in its epoch.
    """

    def __init__(self, dataset: ExampleDataset, *, advance_epoch: bool, **options: Any) -> None:
        super().__init__(dataset, length=dataset.order.num_batches, **options)
        self.batches = dataset
        self.advance_epoch = advance_epoch
        self.epoch = 0
        self.batch = 0
        self._resuming = False

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if not self._resuming:
            self._end_epoch()  # one that was left early
        self._resuming = False
        self.batches.seek(self.epoch, self.batch)
        for batch in super().__iter__():
            self.batch += 1
            if self.batch >= self.epoch_batches:
                self._end_epoch()
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Position of the next batch."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume where `state_dict` was taken."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._resuming = True
        if self.batch >= len(self):
            self._end_epoch()

    def _end_epoch(self) -> None:
        """The end of an epoch is the start of the next, else a resumed fit would get no batch and no error."""
        if self.batch > 0:
            self.epoch += self.advance_epoch
            self.batch = 0


def ignore_termination(_: int) -> None:
    """Ignore SIGTERM, SIGUSR1 and SIGINT in a worker: schedulers and terminals send them to every process, and the last
    step still needs its batch."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def start_workers(make: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """Make an iterator that may start workers, and end them when this process ends, by an error too."""
    global _parent
    _parent = os.getpid()
    before = set(multiprocessing.active_children())
    iterator = make()
    _workers.update(child for child in multiprocessing.active_children() if child not in before)
    return iterator


@atexit.register
def _end_workers() -> None:
    """multiprocessing would send its children SIGTERM, and wait for ever."""
    if os.getpid() == _parent:  # a fork of it has inherited the list, and not the children
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise for the first one that we kill
        for process in list(_workers):
            if process.is_alive():
                process.kill()
