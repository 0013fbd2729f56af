"""Which epoch an iteration reads, wherever it runs; how far it has come; and the loader that resumes there."""

import math
import multiprocessing
from collections.abc import Iterator
from functools import partial
from multiprocessing.context import get_spawning_popen
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from iianet.errors import TrainingError
from loaders.workers import (
    RESUME,
    WORKERS_KEY,
    ignore_termination,
    refuse_small_memory,
    shared_zeros,
    sharing,
    start_workers,
)

Item = TypeVar("Item")

KNOWN_ITERATIONS = 8
"""Iterations of one dataset that workers may begin at the same time, as `zip(loader, loader)` does."""


class Position(NamedTuple):
    """A batch of an epoch."""

    epoch: int
    batch: int


BEGINNING = Position(0, 0)


class Epochs:
    """Gives each iteration of a dataset the next epoch, and all workers of one iteration the same.

    A DataLoader does not tell a dataset that an iteration begins: each worker has a copy of it, and asks when it gets
    there. Workers of one iteration share the seed that it drew for them. So the first of them takes the next epoch,
    and the others find it in shared memory. Copies that are sent elsewhere count by themselves.

    Args:
        length: Batches of an epoch; infinite where that is not known.
        start: Where the first iteration begins.
        advances: Whether each iteration is the next epoch; else it is the same again.

    Attributes:
        length: Batches after which an epoch ends here.
    """

    def __init__(self, length: float, start: Position = BEGINNING, *, advances: bool = True) -> None:
        self.length = length
        self._advances = advances
        self._next = shared_zeros(3)
        self._begun = shared_zeros(4 * KNOWN_ITERATIONS).view(KNOWN_ITERATIONS, 4)
        with sharing():
            self._lock = multiprocessing.get_context("spawn").Lock()  # all kinds of workers take one of this context
        self._iterations = 0
        self.seek(start)

    @property
    def next(self) -> Position:
        """Where the next iteration begins."""
        return Position(*self._next[:2].tolist())

    @property
    def position(self) -> Position:
        """Where the iteration goes on whose batches were last handed out in this process, or else the next begins."""
        return self._reached[0] if self._reached else self.next

    @property
    def is_read_by_workers(self) -> bool:
        """Whether workers have begun an iteration since the last `seek`."""
        return bool(self._next[2])

    def seek(self, position: Position) -> None:
        """Let the next iteration begin at a batch of an epoch.

        The end of an epoch is the start of the next, else a resumed fit would get no batch and no error.
        """
        self._reached: list[Position] = []
        if position.batch >= self.length:
            position = Position(position.epoch + self._advances, 0)
        with self._lock:
            self._next.copy_(torch.tensor([*position, 0]))

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

    def tell_apart(self) -> None:
        """Tell the workers of the iteration to come from those of one that was left before all had begun it."""
        self._iterations += 1

    def _take(self, by_workers: bool) -> Position:
        taken = self.next
        self._next.copy_(torch.tensor([taken.epoch + self._advances, 0, max(int(self._next[2]), by_workers)]))
        return taken

    def count(self, batches: Iterator[Item], begun: Position) -> Iterator[Item]:
        """The batches of the iteration that has begun at a position, counted as they are handed out."""
        self._reached = reached = [begun]  # of its own: an earlier iteration that goes on counts for nothing
        return self._count(batches, begun, reached)

    def _count(self, batches: Iterator[Item], begun: Position, reached: list[Position]) -> Iterator[Item]:
        for number, batch in enumerate(batches, start=begun.batch + 1):
            reached[:] = [Position(begun.epoch, number)] if number < self.length else []
            yield batch

    def __reduce_ex__(self, protocol: Any) -> Any:
        if get_spawning_popen():
            return super().__reduce_ex__(protocol)
        return partial(Epochs, advances=self._advances), (self.length, self.next)


class EpochDataset(IterableDataset[Item]):
    """Ready batches, for an `EpochLoader`.

    Attributes:
        epochs: Which epoch the next iteration reads, and how far this one has come.
        batch_bytes: Bytes of a batch.
    """

    epochs: Epochs
    batch_bytes: int


class EpochLoader(DataLoader[Item]):
    """A DataLoader that loses no batch without an error, and knows which were used, whatever workers have read ahead.

    Args:
        dataset: Makes the batches.
        num_workers: Worker processes.
        ranks_here: Ranks on this machine, which share its memory.
        options: Of the DataLoader.
    """

    def __init__(self, dataset: EpochDataset[Item], *, num_workers: int, ranks_here: int = 1, **options: Any) -> None:
        if num_workers:
            options.setdefault("worker_init_fn", ignore_termination)
        super().__init__(dataset, batch_size=None, num_workers=num_workers, **options)
        self.epochs = dataset.epochs
        self.batch_bytes = dataset.batch_bytes
        self._length = dataset.epochs.length  # of a whole epoch; a Trainer may end it earlier
        self._ranks_here = ranks_here
        self._has_begun = False  # all ranks begin together; later the free memory is without what the others hold

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        """Read an epoch, or what is left of it.

        Raises:
            ConfigError: There is no room for the batches in shared memory.
            TrainingError: A worker was killed, or batches did not arrive.
        """
        if not self._has_begun:
            waiting = self.num_workers * (self.prefetch_factor or 0)
            refuse_small_memory(self._ranks_here, self.num_workers, waiting + 1, self.batch_bytes)  # 1 in use
        self._has_begun = True
        self.epochs.tell_apart()
        begun = self.epochs.next  # before workers take it
        yield from self.epochs.count(self._all_batches(self._length - begun.batch), begun)

    def _all_batches(self, expected: float) -> Iterator[Item]:
        """The batches of an iteration, which has to give so many; infinite where that is not known."""
        found = 0
        try:
            for batch in start_workers(super().__iter__):
                found += 1
                yield batch
        except GeneratorExit:  # left early, by who has had a batch
            raise
        except BaseException:  # an interrupted wait too: its workers might begin it after the next one
            self._iterator = None  # persistent workers end with it: the next iteration starts others
            raise
        if found < expected < math.inf:
            raise TrainingError(
                f"the loader gave {found} of the {expected} batches that were left of its epoch: its workers "
                f"({self.num_workers}) lost the others, and what they printed is above. {RESUME}, with fewer "
                f"{WORKERS_KEY}; 0 loads in the process that uses them"
            )
