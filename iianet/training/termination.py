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
        number: Number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Termination:
    """Notes that a signal was received. The run itself ends where its state can be saved."""

    def __init__(self) -> None:
        self._received = 0

    def listen(self) -> None:
        """Handle SIGTERM instead of Lightning, which deadlocks with two ranks; it restores the handler before it.

        On SIGINT Lightning would exit without a checkpoint; a second one still does.
        """
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def is_asked(self, trainer: pl.Trainer) -> bool:
        """Whether any rank received a signal. All ranks ask at once: one that stopped alone would leave the others
        waiting."""
        return trainer.strategy.reduce_boolean_decision(bool(self._received), all=False)

    @property
    def number(self) -> int:
        """Number of the received signal; SIGTERM if another rank received it."""
        return self._received or signal.SIGTERM

    def _note(self, number: int, _: Any) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            logger.info("interrupted: finishing and saving this step first; interrupt again to stop at once")


@contextmanager
def own_interruption() -> Iterator[None]:
    """Restore the handler of SIGINT afterwards."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
