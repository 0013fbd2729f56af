"""Checkpoint files that are never half written, and last.ckpt, from which `--resume last` resumes bit-exactly."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from iianet.checkpoint import read_checkpoint
from iianet.errors import TrainingError
from iianet.run_folder import replacing
from iianet.training.lightning_module import SeparationModule
from iianet.training.loop_state import epoch_is_over, validation_follows
from iianet.training.termination import RunStopped, Termination, any_rank


class LastCheckpoint(pl.callbacks.Checkpoint):
    """Saves last.ckpt after each validation and epoch, every so many steps, and where SIGTERM or Ctrl-C ends the run.

    What follows from a step must not be lost. So nothing is saved while gradients are accumulated; a step on which
    validation follows is saved once that has started, as SeparationModule has noted by then; and one that ends an epoch
    is saved when the epoch has ended. On SIGTERM within validation nothing of it is kept: the resumed run validates
    again from the start.

    The run ends by an exception, since a Trainer that is only asked to stop validates first, which may take longer than
    the machine is still available. As a Checkpoint callback it runs after all others, and saves their results.

    A loss that is not finite ends the run, and nothing is saved after it: SeparationModule refuses that.

    Args:
        path: Path of the checkpoint.
        every_n_steps: Optimizer steps from one save to the next within an epoch; None saves none there.
    """

    def __init__(self, path: Path, every_n_steps: int | None) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.termination = Termination()
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Listen for signals, and note the step that the run starts from."""
        checkpoints = trainer.strategy.checkpoint_io
        assert isinstance(checkpoints, AtomicCheckpointIO)
        checkpoints.restoring = False
        self.termination.listen()
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Save the step where it is due. Raises RunStopped, and TrainingError where a loss is not finite."""
        stepped = trainer.global_step > self._step  # otherwise gradients are being accumulated
        self._step = trainer.global_step
        if stepped and not validation_follows(trainer) and not epoch_is_over(trainer):
            self._save_step(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Save the last step, where no validation has done so. Raises RunStopped."""
        if not validation_follows(trainer):
            self.stop_if_asked(trainer)
            trainer.save_checkpoint(self.path)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Save the step before, where it is due. Raises RunStopped."""
        self._save_step(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stop all ranks where one was asked to. Raises RunStopped."""
        self.stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Save the state with the results of validation."""
        trainer.save_checkpoint(self.path)

    def _save_step(self, trainer: pl.Trainer) -> None:
        self.stop_if_asked(trainer)
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            trainer.save_checkpoint(self.path)

    def stop_if_asked(self, trainer: pl.Trainer) -> None:
        """Save and stop all ranks where one was asked to. Raises RunStopped, and TrainingError where one diverged."""
        module = trainer.lightning_module
        assert isinstance(module, SeparationModule)
        if any_rank(trainer, self.termination.is_asked or module.diverged):
            if any_rank(trainer, module.diverged):
                raise module.divergence("a loss is not finite")
            trainer.save_checkpoint(self.path)
            words = f"stopped by {self.termination.name} at step {trainer.global_step}; resume with --resume last"
            raise RunStopped(words, self.termination.number)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, syncs it and renames it; reads none that is damaged; deletes files alone.

    Lightning's own writes into the system's temporary folder and moves from there, which is a plain copy where that is
    another file system: a run killed within it leaves a broken checkpoint and no older one. It reads what torch does
    not check, and deletes a folder where a checkpoint is named so.

    Args:
        folder: Folder of the run; no file outside of it is deleted.

    Attributes:
        restoring: Whether what was read is being restored; errors then are of what the checkpoint holds.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.restoring = False

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ARG002
    ) -> None:
        """Replace the file at `path`, a local one. Raises TrainingError where it cannot be written."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:  # only rank 0 writes
            torch.save(checkpoint, stream)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint on the CPU. Raises WeightsError where it is damaged or holds objects."""
        self.restoring = True
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, if it is a file. Raises TrainingError where it is not in the run's folder."""
        path = Path(path)
        if not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise TrainingError(
                f"{path}: found among the checkpoints to delete, expected files in {self.folder} alone; it is kept. "
                "Resume from another checkpoint of the run"
            )
        if path.is_file():
            path.unlink()
