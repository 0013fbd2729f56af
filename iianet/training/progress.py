"""How a run shows its progress: a bar in a terminal, lines where there is none, and a line for each epoch."""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from iianet.config.fields import CUDA_GRAPHS
from iianet.training.lightning_module import SeparationModule
from iianet.training.results import quality
from iianet.wording import counted, duration

logger = logging.getLogger(__name__)

LINE_SECONDS = 60.0
"""Time from one line to the next, where there is no terminal."""


def progress(epochs: int) -> tuple["ProgressLines", *tuple["Bar", ...]]:
    """The callbacks that show progress: where standard error is a terminal, a bar there instead of lines.

    Args:
        epochs: training.epochs.
    """
    is_terminal = sys.stderr.isatty()
    lines = ProgressLines(epochs, seconds=None if is_terminal else LINE_SECONDS)
    return (lines, Bar(leave=True)) if is_terminal else (lines,)


FIGURES = ("train_loss", "val_si_snr", "val_quality")
"""What the bar shows of the figures that are logged."""


def _tell_missing_graphs() -> None:
    """Warn where the first step found that some of what was compiled cannot be recorded."""
    from torch._dynamo.utils import counters  # loads the compiler, which is loaded by now

    if skipped := counters["inductor"]["cudagraph_skips"]:
        logger.warning(
            "CUDA graphs: torch cannot record %s of the separator, and runs it without; TORCH_LOGS=perf_hints says why",
            counted(skipped, "compiled part"),
        )


class ProgressLines(pl.Callback):
    """Logs a line for each epoch, and from time to time one within it.

    Args:
        epochs: training.epochs.
        seconds: Time from one line to the next within an epoch; None logs none there.
    """

    def __init__(self, epochs: int, seconds: float | None) -> None:
        self.epochs = epochs
        self.seconds = seconds
        self._start = self._line = time.monotonic()
        self._compiling = False
        self._worked = False  # whether this process made something of the epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the clock, also where an epoch is resumed in its middle, and say what the first step waits for."""
        assert isinstance(pl_module, SeparationModule)
        self._start = self._line = time.monotonic()
        self._compiling = bool(pl_module.config.training.compile)
        if self._compiling:
            logger.info("compiling the separator: the first step takes minutes")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the clock of the epoch."""
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Log how far the epoch is, where it is time to."""
        if self._compiling:
            self._compiling = False
            logger.info("compiled: the first step took %s", duration(time.monotonic() - self._line))
            assert isinstance(pl_module, SeparationModule)
            if pl_module.config.training.compile == CUDA_GRAPHS:
                _tell_missing_graphs()
        if self._is_time():
            loss = float(trainer.callback_metrics["train_loss"])
            assert isinstance(pl_module, SeparationModule)
            rate = pl_module.times.per_second  # up to the step before; the module counts after its callbacks
            logger.info(
                "epoch %d: batch %d of %s, loss %.2f dB%s",
                trainer.current_epoch,
                trainer.fit_loop.batch_idx + 1,
                trainer.num_training_batches,
                loss,
                f", {rate:.3g} examples/s" if rate else "",
            )

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Log how far the validation is, where it is time to."""
        if self._is_time():
            (total,) = trainer.num_val_batches
            logger.info("epoch %d: validation, batch %d of %s", trainer.current_epoch, batch_idx + 1, total)

    def tell_test(self, trainer: pl.Trainer, number: int, total: float) -> None:
        """Log how far the test split is, where it is time to: the number of a batch, from 1 on, and of all."""
        if self._is_time():
            logger.info("epoch %d: test, batch %d of %s", trainer.current_epoch, number, total)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Log the figures of the epoch."""
        assert isinstance(pl_module, SeparationModule)
        if pl_module.history and self._worked:
            self._worked = False
            figures, config = pl_module.history[-1], pl_module.config
            tested = f", test {-figures['test_loss']:.2f} dB" if "test_loss" in figures else ""
            logger.info(
                "epoch %d (%d of %d): train loss %.2f dB (negative %s), validation %s %.2f dB%s, lr %.3g, %s",
                figures["epoch"],
                figures["epoch"] + 1,
                self.epochs,
                figures["train_loss"],
                quality(config, "train"),
                quality(config, "val"),
                -figures["val_loss"],
                tested,
                figures["lr"],
                duration(time.monotonic() - self._start),
            )

    def _is_time(self) -> bool:
        self._worked = True
        now = time.monotonic()
        if self.seconds is None or now - self._line < self.seconds:
            return False
        self._line = now
        return True


class Bar(pl.callbacks.TQDMProgressBar):
    """Lightning's bar, with loss, validation figure and examples/s beside it.

    It is on standard error, since standard output is for results. Its figures are taken once in
    `log_every_n_steps` batches, for taking them out of a GPU waits until that has finished.
    """

    _figures: Mapping[str, float] = {}
    _are_due = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how far the epoch is."""
        assert isinstance(pl_module, SeparationModule)
        self._are_due = not self._figures or (batch_idx + 1) % pl_module.config.training.log_every_n_steps == 0
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._are_due = True

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Figures to show, each as it was logged last."""
        if self._are_due:
            logged = trainer.callback_metrics  # what is logged for a bar, Lightning takes out of tensors at each step
            self._figures = {name: float(logged[name]) for name in FIGURES if name in logged}
        assert isinstance(pl_module, SeparationModule)
        rate = pl_module.times.per_second
        return {**self._figures, **({"examples/s": rate} if rate else {})}

    def init_train_tqdm(self) -> Tqdm:
        """Bar of training."""
        with redirect_stdout(sys.stderr):
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        """Bar of a validation."""
        with redirect_stdout(sys.stderr):
            return super().init_validation_tqdm()
