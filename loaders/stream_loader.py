"""The loader of a stream: knows its epoch, and its length only where it was told."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from iianet.batch import Batch
from iianet.errors import StoreError
from loaders.loader import iterate, leave_termination_to_the_trainer
from loaders.stream_dataset import StreamDataset

logger = logging.getLogger(__name__)


class StreamLoader(DataLoader[Batch]):
    """A DataLoader of ready batches, without a position: an epoch that is resumed starts over.

    Args:
        split: For messages.
        dataset: Of its batches.
        epoch: Says which epoch the next iteration is.
        batches: Of an epoch; None where it ends with the stream.
        num_workers: Loader workers.
        options: Of DataLoader.

    Attributes:
        epoch_batches: Batches after which whoever iterates leaves an epoch.
        asked: When the latest batch was asked for, time.monotonic().
        waited: Seconds until it was there.
    """

    def __init__(
        self,
        split: str,
        dataset: StreamDataset,
        *,
        epoch: Callable[[], int],
        batches: int | None,
        num_workers: int,
        **options: Any,
    ) -> None:
        start = leave_termination_to_the_trainer if num_workers else None
        super().__init__(dataset, batch_size=None, num_workers=num_workers, worker_init_fn=start, **options)
        self.split = split
        self.stream = dataset
        self.epoch = epoch
        self.batches = batches
        self.epoch_batches: float = batches or float("inf")
        self.asked = self.waited = 0.0
        self._told = 0

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("the length of a stream is not known")
        return self.batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.asked = time.monotonic()
        self.stream.set_epoch(self.epoch())
        examples = 0
        for number, batch in enumerate(iterate(super().__iter__), start=1):
            self.waited = time.monotonic() - self.asked
            examples += batch.num_examples
            if number == self.batches:  # nobody asks again then
                self._tell_left_out()
            yield batch
            self.asked = time.monotonic()
        self._tell_left_out()
        if not examples and self.stream.world_size == 1:
            raise StoreError(
                f"{self.split}: {self.stream.urls[0]} and what follows have no example to train on: "
                f"{int(self.stream.too_short.sum())} are shorter than the segment; add longer mixtures or shorten "
                "datamodule.data_config.segment"
            )

    def _tell_left_out(self) -> None:
        """Say how many examples are too short, once for each number."""
        left_out = int(self.stream.too_short.sum())
        if left_out and left_out != self._told:
            seconds = self.stream.rows.num_samples / self.stream.rows.sample_rate
            logger.info(
                "%s: %d examples are shorter than the segment of %g s and left out", self.split, left_out, seconds
            )
        self._told = left_out
