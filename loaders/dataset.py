"""Batches of a split for one rank, and the loader that a Trainer iterates, whose position a checkpoint keeps."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from iianet.batch import Batch
from loaders.assemble import Assembler
from loaders.order import Order
from loaders.read_ahead import ReadAhead, worker_share
from loaders.workers import CountedLoader, sendable, shared_zeros


class ExampleDataset(IterableDataset[Batch]):
    """Batches of one rank, from a position of an epoch on; each worker makes every num_workers-th.

    The position lies in shared memory, since persistent workers never see attributes that are set later.

    Args:
        assembler: Makes the batches.
        rank: Number of the rank.
        read_ahead: Reads the shards ahead; there are none in raw mode.
    """

    def __init__(self, assembler: Assembler, rank: int, read_ahead: ReadAhead) -> None:
        self.assembler = assembler
        self.rank = rank
        self.read_ahead = read_ahead
        self._position = shared_zeros(2)

    @property
    def order(self) -> Order:
        """Order of the split's examples."""
        return self.assembler.order

    def seek(self, epoch: int, batch: int) -> None:
        """Let the next iteration start at a batch of an epoch."""
        self._position.copy_(torch.tensor([epoch, batch]))

    def __iter__(self) -> Iterator[Batch]:
        return sendable(self._batches())

    def _batches(self) -> Iterator[Batch]:
        epoch, start = self._position.tolist()
        worker, order = worker_share(), self.order.epoch(epoch)
        batches = range(start, self.order.num_batches)
        ours = np.concatenate([self.order.positions(batch, self.rank) for batch in batches])
        shard = np.full(len(order.example), -1, dtype=np.int64)
        if (stored := self.assembler.stored) is not None:
            shard = stored.shard_of(self.order.utterance_of_example[order.example], order.view)
        with self.read_ahead.start_epoch(shard[ours], order.window[ours], worker) as ahead:
            for batch in batches[worker.number :: worker.of]:
                positions = self.order.positions(batch, self.rank)
                ahead.settle(int(order.window[positions].max(initial=0)), shard[positions])
                yield self._batch(epoch, batch)
            ahead.finish()

    def _batch(self, epoch: int, batch: int) -> Batch:
        positions = self.order.positions(batch, self.rank)
        if len(positions):
            return self.assembler.batch(epoch, positions.tolist())
        idle = self.assembler.batch(epoch, self.order.positions(batch, rank=self.order.world_size - 1)[:1].tolist())
        # This rank has no row of the last batch, but a step without rows would hang the others.
        return replace(idle, weight=torch.zeros_like(idle.weight), num_examples=0, dropped=())


class TimedLoader(CountedLoader[Batch]):
    """A loader that measures how long each batch is waited for.

    Args:
        dataset: Makes the batches.
        length: Batches of an epoch; None where it is not known.
        options: Of the CountedLoader.

    Attributes:
        epoch_batches: Batches after which the Trainer ends an epoch.
        asked: Time when the latest batch was asked for, time.monotonic().
        waited: Seconds until that batch was there.
    """

    def __init__(self, dataset: IterableDataset[Batch], *, length: int | None, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.length = length
        self.epoch_batches = math.inf if length is None else length
        self.asked = self.waited = 0.0

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("the number of batches is not known")
        return self.length

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.asked = time.monotonic()
        for batch in self.all_batches(self.remaining()):
            self.waited = time.monotonic() - self.asked
            yield batch
            self.asked = time.monotonic()

    def remaining(self) -> int | None:
        """Batches that the next iteration has to give; None where that is not known."""
        return self.length


class BatchLoader(TimedLoader):
    """The loader of a split in its order, with a position that is saved with a checkpoint and resumed from.

    Attributes:
        advance_epoch: Whether each iteration is the next epoch, for training; else it is epoch 0 again.
        epoch: Epoch of the next batch.
        batch: Number of the next batch in its epoch.
    """

    def __init__(self, dataset: ExampleDataset, *, advance_epoch: bool, **options: Any) -> None:
        bytes_of_one = dataset.assembler.batch_bytes
        super().__init__(dataset, length=dataset.order.num_batches, batch_bytes=bytes_of_one, **options)
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

    def remaining(self) -> int:
        """Batches from the position to the end of the epoch."""
        return len(self) - self.batch

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
