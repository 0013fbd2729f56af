"""Rows that no batch could have, such as those of a broken wav: counted, and named."""

import logging

from iianet.batch import Batch
from iianet.wording import counted

logger = logging.getLogger(__name__)

NAMED = 5
"""Utterances named in the warning of an epoch that skipped rows."""


class DroppedRows:
    """Rows that were skipped, of all batches of an epoch.

    Attributes:
        by_key: Number of rows skipped in this epoch, by utterance key.
    """

    def __init__(self) -> None:
        self.by_key: dict[str, int] = {}
        self._named: set[str] = set()

    def count(self, batch: Batch) -> None:
        """Count those of a batch, and say why, once a run for each utterance."""
        for key, reason in batch.dropped:
            if key not in self._named:
                logger.warning("%s: skipped: %s", key, reason)
                self._named.add(key)
            self.by_key[key] = self.by_key.get(key, 0) + 1

    def end_epoch(self, epoch: int) -> None:
        """Warn of those of the epoch, and start anew."""
        if self.by_key:
            rows, keys = sum(self.by_key.values()), ", ".join(sorted(self.by_key)[:NAMED])
            more = len(self.by_key) - NAMED
            keys += f" and {counted(more, 'more utterance')}" if more > 0 else ""
            logger.warning("epoch %d: skipped %s (%s)", epoch, counted(rows, "row"), keys)
        self.by_key.clear()
