"""Which epoch an iteration reads, wherever it runs."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import get_spawning_popen
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import get_worker_info

from loaders.workers import shared_zeros

Item = TypeVar("Item")

KNOWN_ITERATIONS = 8
"""Iterations of one dataset that workers may begin at the same time, as `zip(loader, loader)` does."""


class Position(NamedTuple):
    """A batch of an epoch."""

    epoch: int
    batch: int


class Progress:
    """How far an iteration has come.

    Attributes:
        position: Of the batch that comes next; None where no iteration has begun, or it is at its end.
    """

    def __init__(self) -> None:
        self.position: Position | None = None

    def count(self, batches: Iterator[Item], position: Position, length: int) -> Iterator[Item]:
        """The batches of an epoch of `length` batches, from a position on, counted as they are handed out."""
        self.position = position
        return self._count(batches, position, length)

    def _count(self, batches: Iterator[Item], position: Position, length: int) -> Iterator[Item]:
        for number, batch in enumerate(batches, start=position.batch + 1):
            self.position = Position(position.epoch, number) if number < length else None
            yield batch


class Epochs:
    """Gives each iteration of a dataset the next epoch, and all workers of one iteration the same.

    A DataLoader does not tell a dataset that an iteration begins: each worker has a copy of it, and asks when it gets
    there. Workers of one iteration share the seed that it drew for them. So the first of them takes the next epoch,
    and the others find it in shared memory. Copies that are sent elsewhere count by themselves.
    """

    def __init__(self, epoch: int, batch: int = 0) -> None:
        self._next = shared_zeros(3)
        self._next[:2] = torch.tensor([epoch, batch])
        self._begun = shared_zeros(4 * KNOWN_ITERATIONS).view(KNOWN_ITERATIONS, 4)
        self._lock = multiprocessing.get_context("spawn").Lock()  # of this context since all kinds of workers take it
        self._iterations = 0

    @property
    def next(self) -> Position:
        """Where the next iteration begins."""
        return Position(*self._next[:2].tolist())

    @property
    def is_read_by_workers(self) -> bool:
        """Whether workers have begun an iteration since the last `seek`."""
        return bool(self._next[2])

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at a batch of an epoch."""
        with self._lock:
            self._next.copy_(torch.tensor([epoch, batch, 0]))

    def begin(self) -> Position:
        """Begin an iteration here, or take part in one that other workers have begun."""
        worker = get_worker_info()
        self._iterations += 1  # persistent workers keep their seed
        with self._lock:
            if worker is None:
                return self._take(by_workers=False)
            iteration = hash((worker.seed - worker.id, self._iterations))
            for known in self._begun:
                known_iteration, workers, *position = known.tolist()
                if known_iteration == iteration and workers < worker.num_workers:  # else the seed was set once more
                    known[1] += 1
                    return Position(*position)
            taken = self._take(by_workers=True)
            self._begun.copy_(self._begun.roll(1, 0))
            self._begun[0] = torch.tensor([iteration, 1, *taken])
            return taken

    def _take(self, by_workers: bool) -> Position:
        taken = self.next
        self._next.copy_(torch.tensor([taken.epoch + 1, 0, max(int(self._next[2]), by_workers)]))
        return taken

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol) if get_spawning_popen() else (Epochs, tuple(self.next))
