"""The test split, run through the network every so many epochs, for a figure beside that of validation."""

import logging
import math
import sys
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from iianet.training.lightning_module import SeparationModule
from iianet.training.loop_state import is_last_validation
from iianet.training.results import quality

logger = logging.getLogger(__name__)


class PeriodicTest(pl.Callback):
    """Runs the test split after the validation of every so many epochs, the first one among them, and logs its mean.

    It does so within that validation, before its results are kept. So a run that is stopped meanwhile validates and
    tests again when it resumes, and ends as one that never stopped. Nothing else follows from it: no checkpoint is
    chosen by it, and all random generators are afterwards as they were.

    Lightning's way is a second loader of validation, which is then read in every epoch, counted in the loops of
    checkpoints, and cut by limit_val_batches.

    Args:
        every_n_epochs: training.test_every_n_epochs.
        stop_if_asked: Stops all ranks, saving the run, where one was asked to; called after each batch.
        tell: Tells of a batch, by its number from 1 on and the number of all.
    """

    def __init__(
        self,
        every_n_epochs: int,
        stop_if_asked: Callable[[pl.Trainer], None],
        tell: Callable[[pl.Trainer, int, float], None],
    ) -> None:
        self.every_n_epochs = every_n_epochs
        self._stop_if_asked = stop_if_asked
        self._tell = tell
        self._loader: Any = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test, where it is due, and leave the loss for the record of the epoch. Raises RunStopped."""
        assert isinstance(pl_module, SeparationModule)
        if trainer.current_epoch % self.every_n_epochs or not is_last_validation(trainer):
            return
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers
            loss = self._loss(trainer, pl_module)
        if not math.isfinite(loss):
            logger.warning("epoch %d: the test loss is %f, which is not recorded", trainer.current_epoch, loss)
            return
        pl_module.test_loss = loss
        pl_module.log("test_loss", loss)
        pl_module.log("test_si_snr" if quality(pl_module.config, "val") == "SI-SNR" else "test_quality", -loss)

    def _loss(self, trainer: pl.Trainer, module: SeparationModule) -> float:
        """Mean over all examples of all ranks, as validation computes its own."""
        if self._loader is None:  # kept, since it checks the shards that it reads once
            owner: Any = trainer  # which gets this attribute with its data
            self._loader = owner.datamodule.test_dataloader()
        module.test_mean.reset()
        total, hidden = self._loader.epochs.length, not (trainer.is_global_zero and sys.stderr.isatty())
        with tqdm(self._loader, "Testing", disable=hidden, delay=1.0, leave=False, dynamic_ncols=True) as batches:
            for number, batch in enumerate(batches):
                trainer.strategy.test_step(trainer.strategy.batch_to_device(batch), number)
                self._tell(trainer, number + 1, total)
                self._stop_if_asked(trainer)
        return float(module.test_mean.compute())
