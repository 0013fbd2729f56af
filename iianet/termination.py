"""SIGTERM, which Slurm and clouds send before they take a machine away."""

import signal
from typing import Any

import pytorch_lightning as pl


class Terminated(Exception):
    """A run was stopped by SIGTERM; its checkpoint is written."""


class Termination:
    """Notes that SIGTERM came. The run itself ends where its state can be saved."""

    def __init__(self) -> None:
        self._received = False

    def listen(self) -> None:
        """Take the signal over from Lightning, which deadlocks with two ranks. It puts back what was there before."""
        signal.signal(signal.SIGTERM, self._note)

    def is_asked(self, trainer: pl.Trainer) -> bool:
        """Whether it came to any rank. All ranks ask at once, since one that stopped alone would leave the others
        waiting."""
        return trainer.strategy.reduce_boolean_decision(self._received, all=False)

    def _note(self, *_: Any) -> None:
        self._received = True
