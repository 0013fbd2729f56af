"""Batches of a split for one rank, and the loader that a Trainer iterates, whose position a checkpoint keeps."""

import time
from collections.abc import Iterator

import numpy as np

from iianet.batch import Batch
from loaders.assemble import Assembler
from loaders.epochs import EpochDataset, EpochLoader, Epochs, Position
from loaders.order import Indices
from loaders.read_ahead import ReadAhead, worker_share
from loaders.workers import sendable


class ExampleDataset(EpochDataset[Batch]):
    """Batches of one rank, from a position of an epoch on; each worker makes every num_workers-th.

    Args:
        assembler: Makes the batches.
        rank: Number of the rank.
        read_ahead: Reads the shards ahead; there are none in raw mode.
        start: Where the first iteration begins.
        advances: Whether each iteration is the next epoch, for training; else it is the same again.
    """

    def __init__(
        self,
        assembler: Assembler,
        rank: int,
        read_ahead: ReadAhead,
        *,
        start: Position,
        advances: bool,
    ) -> None:
        self.assembler = assembler
        self.order = assembler.order
        self.rank = rank
        self.read_ahead = read_ahead
        self.epochs = Epochs(len(self), start, advances=advances)
        self.batch_bytes = assembler.batch_bytes

    def __len__(self) -> int:
        """Batches of an epoch, on this rank as on every other."""
        return self.order.num_batches

    def __iter__(self) -> Iterator[Batch]:
        return sendable(self._batches())

    def _batches(self) -> Iterator[Batch]:
        epoch, start = self.epochs.begin()
        worker, order = worker_share(), self.order.epoch(epoch)
        batches = [self.order.positions(batch, self.rank) for batch in range(start, len(self))]
        ours = np.concatenate(batches)
        shard = np.full(len(order.example), -1, dtype=np.int64)
        if (stored := self.assembler.split.stored) is not None:
            shard = stored.shard_of(self.order.utterance_of_example[order.example], order.view)
        with self.read_ahead.start_epoch(shard[ours], order.window[ours], worker) as ahead:
            for positions in batches[worker.number :: worker.of]:
                ahead.settle(int(order.window[positions].max(initial=0)), shard[positions])
                yield self.assembled(epoch, positions)
            ahead.finish()

    def assembled(self, epoch: int, positions: Indices) -> Batch:
        """The batch at some positions of an epoch."""
        return self.assembler.batch(epoch, positions.tolist())


class TimedLoader(EpochLoader[Batch]):
    """A loader that measures how long each batch is waited for.

    Attributes:
        asked: Time when the latest batch was asked for, time.monotonic().
        waited: Seconds until that batch was there.
    """

    asked = waited = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.asked = time.monotonic()
        for batch in super().__iter__():
            self.waited = time.monotonic() - self.asked
            yield batch
            self.asked = time.monotonic()


class BatchLoader(TimedLoader):
    """The loader of a split in its order, with a position that is saved with a checkpoint and resumed from."""

    dataset: ExampleDataset

    def state_dict(self) -> dict[str, int]:
        """Position of the next batch."""
        return self.epochs.position._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume where `state_dict` was taken."""
        self.epochs.seek(Position(**state))
