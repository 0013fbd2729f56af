"""The IterableDataset of one split: Batches in the order, each worker every num_workers-th."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from iianet.batch import Batch
from loaders.assemble import Assembler
from loaders.order import Order
from loaders.read_ahead import Following, ReadAhead, Share


class ExampleDataset(IterableDataset[Batch]):
    """Batches of one rank, from a position of an epoch on.

    The position lies in shared memory, since persistent workers never see attributes that are set later.

    Args:
        assembler: Makes the batches.
        rank: Whose part of each global batch.
        ranks_here: Ranks on this machine: they share the work of reading ahead.
        read_ahead: Of the store's shards; None where there is no store.
    """

    def __init__(self, assembler: Assembler, rank: int, ranks_here: range, read_ahead: ReadAhead | None) -> None:
        self.assembler = assembler
        self.rank = rank
        self.ranks_here = ranks_here
        self.read_ahead = read_ahead
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def order(self) -> Order:
        """Of the split's examples."""
        return self.assembler.order

    def seek(self, epoch: int, batch: int) -> None:
        """Let the next iteration start at a batch of an epoch."""
        self._position.copy_(torch.tensor([epoch, batch]))

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._position.tolist()
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        numbers = range(start + first, self.order.num_batches, stride)
        if self.read_ahead is None:
            yield from (self._batch(epoch, batch) for batch in numbers)
            return
        with self._follow(self.read_ahead, epoch, start, Share(number=first, of=stride)) as ahead:
            window = self.order.epoch(epoch).window
            for batch in numbers:
                ahead.reach(int(window[self.order.positions(batch, self.rank)].max(initial=0)))
                yield self._batch(epoch, batch)
            ahead.finish()

    def _follow(self, read_ahead: ReadAhead, epoch: int, start: int, worker: Share) -> Following:
        """Read ahead of the ranks of this machine, this worker its share."""
        order, stored = self.order.epoch(epoch), self.assembler.stored
        assert stored is not None
        shard = stored.shard_at(self.order.utterance_of_example[order.example], order.view)
        rank = np.arange(len(shard)) % self.order.global_batch // self.order.batch_size
        shard[(rank < self.ranks_here.start) | (rank >= self.ranks_here.stop)] = -1
        shard[: start * self.order.global_batch] = -1  # of a resumed epoch: not read any more
        number = (self.rank - self.ranks_here.start) * worker.of + worker.number
        return read_ahead.follow(shard, order.window, Share(number=number, of=len(self.ranks_here) * worker.of))

    def _batch(self, epoch: int, batch: int) -> Batch:
        positions = self.order.positions(batch, self.rank)
        if len(positions):
            return self.assembler.batch(epoch, positions.tolist())
        idle = self.assembler.batch(epoch, self.order.positions(batch, rank=self.order.world_size - 1)[:1].tolist())
        # This rank has no row of the last batch, but a step without rows would hang the others.
        return replace(idle, weight=torch.zeros_like(idle.weight), num_examples=0, dropped=())
