"""The loader that a Trainer iterates, with its length and position; its workers ignore SIGTERM and Ctrl-C."""

import atexit
import math
import multiprocessing
import multiprocessing.util  # before our own exit is registered, so that ours comes first
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader, IterableDataset

from iianet.batch import Batch
from loaders.dataset import ExampleDataset

Item = TypeVar("Item")

_parent: int | None = None
_started: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


class TimedLoader(DataLoader[Batch]):
    """A DataLoader of ready batches that measures how long each is waited for.

    Attributes:
        epoch_batches: Batches after which whoever iterates leaves an epoch.
        asked: When the latest batch was asked for, time.monotonic().
        waited: Seconds until it was there.
    """

    def __init__(
        self, dataset: IterableDataset[Batch], *, length: int | None, num_workers: int, **options: Any
    ) -> None:
        start = leave_termination_to_the_trainer if num_workers else None
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
        for batch in iterate(super().__iter__):
            self.waited = time.monotonic() - self.asked
            yield batch
            self.asked = time.monotonic()


class BatchLoader(TimedLoader):
    """The loader of a split in its order, with a position that is saved with a checkpoint and resumed from.

    Each iteration is the next epoch, where `advance_epoch`; else epoch 0 again, as validation wants.

    Attributes:
        epoch: Epoch of the next batch.
        batch: Number of the next batch in its epoch.
    """

    def __init__(self, dataset: ExampleDataset, *, advance_epoch: bool, num_workers: int, **options: Any) -> None:
        super().__init__(dataset, length=dataset.order.num_batches, num_workers=num_workers, **options)
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
        """Where the next batch lies."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where `state_dict` was taken."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._resuming = True
        if self.batch >= len(self):
            self._end_epoch()

    def _end_epoch(self) -> None:
        """The end of an epoch is the start of the next, else a resumed fit would get no batch and no error."""
        if self.batch > 0:
            self.epoch += self.advance_epoch
            self.batch = 0


def leave_termination_to_the_trainer(_: int) -> None:
    """Ignore SIGTERM and SIGINT in a worker: schedulers and terminals send them to every process, and the last step
    still needs its batch."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def iterate(make: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """Make an iterator that may start workers, and end those when this process does, whatever it ends by."""
    global _parent
    _parent = os.getpid()
    before = set(multiprocessing.active_children())
    iterator = make()
    _started.update(child for child in multiprocessing.active_children() if child not in before)
    return iterator


@atexit.register
def _end() -> None:
    """multiprocessing would send its children SIGTERM, and wait for them for good."""
    if os.getpid() == _parent:  # a fork of it has inherited the list, and not the children
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise, of the first one that we kill
        for process in list(_started):
            if process.is_alive():
                process.kill()
