"""The best checkpoints of a run, and with each new best one the results that others read."""

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from iianet.config.schema import Config
from iianet.training.lightning_module import MONITORED, SeparationModule
from iianet.training.results import save_curves, save_ranking, save_results
from iianet.training.resume import checkpoint_name
from iianet.wording import show

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_PICTURES = 20.0
"""Drawing takes a quarter of a second, which a run of short epochs would feel."""


def epoch_of(name: str) -> int:
    """Number of the epoch of a checkpoint, which its name begins with."""
    found = re.match(r"epoch=(\d+)", name)
    return int(found[1]) if found else -1


class BestCheckpoints(pl.callbacks.ModelCheckpoint):
    """Keeps the checkpoints of the best validations, writes the results of a new best one, and draws the curves.

    Lightning's own checkpoints name files by their whole paths, forget them where a run's folder was moved, and delete
    what they name. Here a name is one file's in the run's folder, whatever the checkpoint says.

    Args:
        folder: Folder of the run.
        config: Its configuration.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        training = config.training
        super().__init__(
            folder,
            filename="{epoch}" if training.val_check_interval is None else "{epoch}-{step}",
            monitor=MONITORED,
            mode="min",
            save_top_k=training.save_top_k,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.folder = Path(str(self.dirpath))
        self._drawn_at = time.monotonic()

    @property
    def scores(self) -> dict[str, float]:
        """Validation loss of each checkpoint, by its name; the best one first."""
        scores = {Path(path).name: float(score) for path, score in self.best_k_models.items()}
        return dict(sorted(scores.items(), key=lambda item: item[1]))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: on_save_checkpoint saves names and scores."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise ValueError: Lightning's own would take over whole paths, and delete what they name."""
        raise ValueError(f"callbacks: found {show(state_dict)} for the best checkpoints, expected nothing")

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Add the scores, by file name."""
        checkpoint["best_checkpoints"] = self.scores

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: Mapping[str, Any],
    ) -> None:
        """Take over those that lie in the folder; the others are named."""
        scores = {checkpoint_name(name): float(score) for name, score in checkpoint["best_checkpoints"].items()}
        here = {name: score for name, score in scores.items() if (self.folder / name).is_file()}
        here = trainer.strategy.broadcast(here)  # all ranks must decide alike, and rank 0 alone writes
        if gone := sorted(scores.keys() - here.keys()):
            logger.warning(
                "%s: %s, which the checkpoint lists among the best, is not there; the best are those that are, and "
                "what is trained from now on",
                self.folder,
                ", ".join(gone),
            )
        ranked = sorted(here, key=here.__getitem__)[: None if self.save_top_k == -1 else self.save_top_k]
        self.best_k_models = {str(self.folder / name): torch.tensor(here[name]) for name in ranked}
        if ranked:
            self.best_model_path, self.best_model_score = next(iter(self.best_k_models.items()))
            self.kth_best_model_path, self.kth_value = list(self.best_k_models.items())[-1]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save a checkpoint where it is among the best, with their ranking, and the results where it is the best."""
        assert isinstance(pl_module, SeparationModule)
        best, scores = self.best_model_path, self.scores
        super().on_validation_end(trainer, pl_module)
        if self.best_model_path != best and trainer.is_global_zero:
            save_results(self.folder, pl_module.model, pl_module.config, self.scores)
        elif self.scores != scores and trainer.is_global_zero:
            save_ranking(self.folder, self.scores)
        if time.monotonic() - self._drawn_at > SECONDS_BETWEEN_PICTURES and trainer.is_global_zero:
            save_curves(self.folder, pl_module.history, pl_module.config)
            self._drawn_at = time.monotonic()
