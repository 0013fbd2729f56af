"""SIGTERM, which Slurm and clouds send before they take a machine away, and SIGINT, which Ctrl-C sends."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

logger = logging.getLogger(__name__)


class RunStopped(Exception):
    """A run was stopped by a signal; its checkpoint is written.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Termination:
    """Notes that a signal came. The run itself ends where its state can be saved."""

    def __init__(self) -> None:
        self._received = 0

    def listen(self) -> None:
        """Take SIGTERM over from Lightning, which deadlocks with two ranks. It puts back what was there before.

        Of SIGINT Lightning would exit without a checkpoint; a second one still does.
        """
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def is_asked(self, trainer: pl.Trainer) -> bool:
        """Whether one came to any rank. All ranks ask at once, since one that stopped alone would leave the others
        waiting."""
        return trainer.strategy.reduce_boolean_decision(bool(self._received), all=False)

    @property
    def number(self) -> int:
        """Of the signal that came; SIGTERM where it came to another rank."""
        return self._received or signal.SIGTERM

    def _note(self, number: int, _: Any) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            logger.info("interrupted: this step is finished and saved first; interrupt again to end at once")


@contextmanager
def own_interruption() -> Iterator[None]:
    """Put back what became of SIGINT before."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
