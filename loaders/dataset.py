"""The IterableDataset of one split: Batches in the order, each worker every num_workers-th."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.data import IterableDataset, get_worker_info

from iianet.batch import Batch
from loaders.assemble import Assembler
from loaders.order import Order


class ExampleDataset(IterableDataset[Batch]):
    """Batches of one rank, from a position of an epoch on.

    The position lies in shared memory, since persistent workers never see attributes that are set later.
    """

    def __init__(self, assembler: Assembler, rank: int) -> None:
        self.assembler = assembler
        self.rank = rank
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
        for batch in range(start + first, self.order.num_batches, stride):
            yield self._batch(epoch, batch)

    def _batch(self, epoch: int, batch: int) -> Batch:
        positions = self.order.positions(batch, self.rank)
        if len(positions):
            return self.assembler.batch(epoch, positions.tolist())
        idle = self.assembler.batch(epoch, self.order.positions(batch, rank=self.order.world_size - 1)[:1].tolist())
        # This rank has no row of the last batch, but a step without rows would hang the others.
        return replace(idle, weight=torch.zeros_like(idle.weight), num_examples=0, dropped=())
