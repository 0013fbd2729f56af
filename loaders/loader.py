"""The loader that a Trainer iterates: knows its length, its epoch, and where it stands."""

import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from iianet.batch import Batch
from loaders.dataset import ExampleDataset
from loaders.workers import iterate, leave_termination_to_the_trainer


class BatchLoader(DataLoader[Batch]):
    """A DataLoader of ready batches with a position that is saved with a checkpoint and resumed from.

    Each iteration is the next epoch, where `advance_epoch`; else epoch 0 again, as validation wants.

    Attributes:
        epoch: Of the next batch.
        batch: Number of the next batch in it.
        epoch_batches: Batches after which whoever iterates leaves an epoch; by default all.
        asked: When the latest batch was asked for, time.monotonic().
        waited: Seconds until it was there.
    """

    def __init__(self, dataset: ExampleDataset, *, advance_epoch: bool, num_workers: int, **options: Any) -> None:
        start = leave_termination_to_the_trainer if num_workers else None
        super().__init__(dataset, batch_size=None, num_workers=num_workers, worker_init_fn=start, **options)
        self.batches = dataset
        self.advance_epoch = advance_epoch
        self.epoch = 0
        self.batch = 0
        self.epoch_batches = len(self)
        self.asked = self.waited = 0.0
        self._resuming = False

    def __len__(self) -> int:
        return self.batches.order.num_batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.asked = time.monotonic()
        if not self._resuming:
            self._end_epoch()  # one that was left early
        self._resuming = False
        self.batches.seek(self.epoch, self.batch)
        for batch in iterate(super().__iter__):
            self.waited = time.monotonic() - self.asked
            self.batch += 1
            if self.batch >= self.epoch_batches:
                self._end_epoch()
            yield batch
            self.asked = time.monotonic()

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
