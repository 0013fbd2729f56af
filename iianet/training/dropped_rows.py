"""Rows that no batch could have, such as those of a broken wav: counted, and named."""

import logging
from collections.abc import Sequence

from iianet.batch import Batch, Dropped
from iianet.errors import MouthError
from iianet.wording import counted

logger = logging.getLogger(__name__)

NAMED = 5
"""Utterances named in the warning of an epoch that skipped rows."""


class DroppedRows:
    """Rows that were skipped, of all batches of an epoch.

    Attributes:
        by_key: Number of rows skipped in this epoch, by utterance key.
        reasons: Why an utterance's rows were skipped for the first time, by its key.
    """

    def __init__(self) -> None:
        self.by_key: dict[str, int] = {}
        self.reasons: dict[str, str] = {}

    def count(self, batch: Batch) -> None:
        """Count those of a batch, and say why, once a run for each utterance."""
        for key, reason in batch.dropped:
            if key not in self.reasons:
                logger.warning("%s: skipped: %s", key, reason)
                self.reasons[key] = reason
            self.by_key[key] = self.by_key.get(key, 0) + 1

    def end_epoch(self, epoch: int) -> None:
        """Warn of those of the epoch, and start anew."""
        if self.by_key:
            rows, keys = sum(self.by_key.values()), ", ".join(sorted(self.by_key)[:NAMED])
            more = len(self.by_key) - NAMED
            keys += f" and {counted(more, 'more utterance')}" if more > 0 else ""
            logger.warning("epoch %d: skipped %s (%s)", epoch, counted(rows, "row"), keys)
        self.by_key.clear()


def refuse_dropped(dropped: Sequence[Dropped], elsewhere: bool = False) -> None:
    """Raise MouthError for the first of some skipped rows, where --on_missing is error; `elsewhere`: another rank's."""
    if dropped or elsewhere:
        key, reason = dropped[0] if dropped else ("a row of another rank", "see its message")
        raise MouthError(f"{key}: cannot be read, and --on_missing is error: {reason}")
