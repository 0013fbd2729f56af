"""SIGTERM and SIGUSR1, which schedulers send before they take a machine away, and SIGINT, which Ctrl-C sends."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from iianet.interruption import Terminated

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

        On SIGINT Lightning would exit without a checkpoint; a second one still does. SIGUSR1, by which Slurm warns
        before a time limit, is treated as SIGTERM.
        """
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)

    @property
    def is_asked(self) -> bool:
        """Whether this rank received a signal."""
        return bool(self._received)

    @property
    def number(self) -> int:
        """Number of the received signal; SIGTERM for SIGUSR1, or if another rank received it."""
        return signal.SIGINT if self._received == signal.SIGINT else signal.SIGTERM

    @property
    def name(self) -> str:
        """Name of the received signal; SIGTERM if another rank received it."""
        return signal.Signals(self._received or signal.SIGTERM).name

    def _note(self, number: int, _: Any) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            logger.info("interrupted: finishing and saving this step first; interrupt again to stop at once")


def any_rank(trainer: pl.Trainer, condition: bool) -> bool:
    """Whether a condition holds on any rank. All ranks ask at once: one that stopped alone would leave the others
    waiting."""
    return trainer.strategy.reduce_boolean_decision(condition, all=False)


@contextmanager
def own_signals() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGUSR1 afterwards, and end by SIGUSR1 as by SIGTERM until steps are made.

    Where SIGUSR1 has a handler, Lightning does not put its own there, which under Slurm saves within the handler.
    """
    before = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGUSR1, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0] or signal.default_int_handler)
        signal.signal(signal.SIGUSR1, before[1] or signal.SIG_DFL)


def _end(*_: Any) -> None:
    raise Terminated
