"""SIGTERM, which Slurm and clouds send before they take a machine away: save a checkpoint and stop."""

import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

TERMINATED = 143
"""Exit code of a run that was stopped so: 128 + SIGTERM, as a shell would say."""


class Terminated(Exception):
    """A run was stopped by SIGTERM; its checkpoint is written."""


class Termination(pl.Callback):
    """Ends a run after the step in which SIGTERM came, with a checkpoint that `--resume last` goes on from.

    The flag is shared by all ranks each step, since a rank that stopped alone would leave the others waiting;
    Lightning's own handling does that with two ranks. It ends by an exception, since a Trainer that is merely asked to
    stop validates first, which may take longer than the machine is left to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._received = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Take the signal over from Lightning, which puts back what was there when it is done."""
        signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stop all ranks where one was asked to. Raises Terminated."""
        if trainer.strategy.reduce_boolean_decision(self._received, all=False):
            trainer.save_checkpoint(self.path)
            raise Terminated(f"stopped by SIGTERM at step {trainer.global_step}; go on with --resume last")

    def _note(self, *_: Any) -> None:
        self._received = True
