"""Early stopping that holds for a resumed run too."""

import logging
from typing import Any

import pytorch_lightning as pl

logger = logging.getLogger(__name__)


class EarlyStopping(pl.callbacks.EarlyStopping):
    """Lightning's, checked after validation, with a decision that outlives the run that came to it.

    Lightning's checkpoints hold how long nothing improved, but a resumed run first trains on for an epoch; and they
    hold the patience, which would win over the config's.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take all back but the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Let a run that had stopped stay so, unless it now has more patience."""
        if self.wait_count >= max(self.patience, 1):
            logger.warning(
                "training had stopped early: %s did not improve in %d validations; to go on, raise "
                "training.early_stop.patience",
                self.monitor,
                self.wait_count,
            )
            trainer.should_stop = True
