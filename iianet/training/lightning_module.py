"""Training of the separator as a LightningModule: steps, metrics, optimizer and scheduler."""

import time
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from iianet.batch import Batch
from iianet.config.fields import CUDA_GRAPHS
from iianet.config.schema import Config
from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.errors import TrainingError
from iianet.losses import PermutationInvariantLoss
from iianet.separator.model import IIANet
from iianet.training.dropped_rows import DroppedRows, refuse_dropped
from iianet.training.embedding_augmentation import augment_embedding, refuse_unfit_mask
from iianet.training.loop_state import epoch_is_over, is_last_validation, validate_again
from iianet.training.resume import changed_settings, refuse_unlike, refuse_unlike_moments, settings_of
from iianet.training.step_times import Spent, StepTimes
from iianet.training.weighted_mean import WeightedMean

MONITORED = "val_loss/dataloader_idx_0"
"""Name under which the published configs monitor the validation loss."""

KERNELS = {"fused", "foreach", "capturable", "differentiable"}
"""Arguments by which an optimizer's kernels are chosen."""
MOMENTA = {"betas", "momentum"}
"""Arguments that a cyclic scheduler moves."""


class SeparationModule(pl.LightningModule):
    """Separator, losses and optimizer of a config.

    Attributes:
        model: The separator, the only registered network.
        encoder: Encoder of the mouths in batches.
        history: Per epoch, at its last validation: epoch, train_loss, val_loss, lr, and where it was tested test_loss.
            Saved with checkpoints.
        test_loss: Loss of the test split in this epoch; None where it was not tested.
        order: Facts that decide the order of the examples, by name. Saved with checkpoints, for
            resume.refuse_other_order.
        init_from: Path and sha256 of the file whose weights the run began from; empty where it drew them. Saved with
            checkpoints.
        dropped: Rows skipped in this epoch.
        times: Time that steps take and wait.
        diverged: Whether a training loss of this rank was not finite. On a GPU that is known at the next step, by when
            the flag was copied; asking at once would wait until the GPU has done what it was given.
        good_step: Step of the checkpoint that was saved or loaded last; None before the first.
        has_stepped: Whether this process has made a training step.
    """

    def __init__(self, config: Config, encoder: LazyEncoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        audio, data = config.audionet.audionet_config, config.datamodule.data_config
        refuse_unfit_mask(data.embedding_augmentation, round(data.segment * config.encoder.fps))
        self.model = IIANet(**audio.model_dump(), sample_rate=data.sample_rate)
        self.model.separator.keeps_activations = not config.training.checkpoint_activations
        if config.training.compile:
            self.model.separator.compile_blocks(config.training.compile == CUDA_GRAPHS)
        self.losses = {
            "train": _loss(config, "train"),
            "val": _loss(config, "val"),
        }
        self.train_mean = WeightedMean()
        self.val_mean = WeightedMean()
        self.test_mean = WeightedMean()
        self.test_loss: float | None = None
        self.history: list[dict[str, float]] = []
        self.order: dict[str, Any] = {}
        self.init_from: Mapping[str, str] = {}
        self.dropped = DroppedRows()
        self.diverged = False
        self.good_step: int | None = None
        self.has_stepped = False
        self._copied: tuple[Tensor, torch.cuda.Event] | None = None
        self._changed: list[str] = []
        self._restored: Mapping[str, Any] | None = None
        self.scheduler: LRScheduler | None = None
        self._scheduler_state: dict[str, Any] | None = None
        self._train_sums: Tensor | None = None
        self._validation_is_due = False
        self.times = StepTimes()

    def forward(self, batch: Batch) -> Tensor:
        """Estimates of a batch, `(batch, 1, num_samples)`; in training with augmented embeddings, where asked for."""
        with torch.autocast(self.device.type, enabled=False):  # arithmetic of the store, whatever training.precision is
            embedding = self.encoder.complete(batch)
        if self.training:
            embedding = augment_embedding(embedding, self.config.datamodule.data_config.embedding_augmentation)
        estimate: Tensor = self.model(batch.mixture, embedding)
        return estimate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of the batch's rows."""
        self._count_dropped(batch)
        self._seed_dropout(batch_idx)
        loss = self._loss(batch, "train", self.train_mean)
        self._watch(loss.detach())
        self.log("train_loss", loss.detach(), batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Gather the loss of the batch's rows."""
        self._count_dropped(batch)
        self._loss(batch, "val", self.val_mean)

    def test_step(self, batch: Batch, _: int) -> None:
        """Gather the same loss of a batch of the test split."""
        self._count_dropped(batch)
        self._loss(batch, "val", self.test_mean)

    def on_train_batch_end(self, _: Any, batch: Batch, __: int) -> None:
        """Show the examples per second of all ranks."""
        loader = self._loader
        seconds = time.monotonic() - loader.asked
        step = Spent(seconds=seconds, waited=loader.waited, bytes_read=batch.bytes_read)
        self.times.add(step, batch.num_examples * self.trainer.world_size)
        rate = torch.tensor(self.times.per_second)  # on the CPU: a copy to a GPU would wait for it
        self.log("examples/s", rate, batch_size=1)

    def on_validation_start(self) -> None:
        """Note for checkpoints that this validation is not done yet."""
        self._validation_is_due = True

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all examples of all ranks, and in an epoch's last validation step the scheduler.

        The scheduler is stepped here, since the Trainer skips ReduceLROnPlateau in an epoch that was resumed in its
        middle; and before the checkpoint is written, which then holds its state. It is stepped once an epoch even if
        there are more validations, since the published patience counts epochs.
        """
        val_loss = self.val_mean.compute()
        self._refuse_not_finite("validation", val_loss, self.val_mean)
        self.val_mean.reset()
        self._validation_is_due = False
        self.log(MONITORED, val_loss, add_dataloader_idx=False)
        self.log("val_si_snr" if self._val_is_sisdr else "val_quality", -val_loss)
        self.log("lr", self._lr)
        if is_last_validation(self.trainer):
            self._record(float(val_loss))
            self._step_scheduler(float(val_loss))

    def on_train_epoch_start(self) -> None:
        """Reset the epoch's mean; Lightning does not call this for an epoch that is resumed in its middle."""
        self.train_mean.reset()

    def on_train_epoch_end(self) -> None:
        """Log the mean training loss, and warn of skipped rows."""
        train_loss = self.train_mean.compute()
        self.log("train_loss_epoch", train_loss)
        self._log_times()
        self.dropped.end_epoch(self.current_epoch)

    def configure_optimizers(self) -> Optimizer:
        """Make the config's optimizer and scheduler; this module steps the scheduler itself."""
        section = self.config.optimizer
        wishes = {**section.arguments, **self._kernels_of_optimizer}
        optimizer: Optimizer = section.optimizer_class(self.model.parameters(), **wishes)
        schedule = self.config.scheduler
        if schedule.scheduler_class is not None:
            self.scheduler = schedule.scheduler_class(optimizer, **schedule.sche_config)
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that the Trainer does not save. Raises TrainingError where the weights are not finite."""
        self._refuse_not_finite_state(checkpoint)
        self.good_step = self.trainer.global_step
        over = epoch_is_over(self.trainer) and not self._validation_is_due
        checkpoint["epochs_done"] = self.current_epoch + over
        checkpoint["settings"] = settings_of(self.config)
        checkpoint["history"] = self.history
        checkpoint["order"] = self.order
        checkpoint["init_from"] = dict(self.init_from)
        checkpoint["validation_is_due"] = self._validation_is_due
        checkpoint["train_mean"] = self.trainer.strategy.reduce(self.train_mean.sums.clone(), reduce_op="sum")
        checkpoint["separation_scheduler"] = self.scheduler.state_dict() if self.scheduler else None

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore that state, as far as it needs no optimizer or rank."""
        self.history = list(checkpoint["history"])
        self.good_step = checkpoint["global_step"]
        self._changed = changed_settings(checkpoint["settings"], self.config)
        self._restored = checkpoint
        self._validation_is_due = checkpoint["validation_is_due"]
        self._train_sums = checkpoint["train_mean"]
        self._scheduler_state = checkpoint["separation_scheduler"]

    def on_fit_start(self) -> None:
        """Restore the rest: the scheduler and the ranks exist by now. Raises ValueError where states are unlike."""
        if self._restored is not None:
            self._refuse_unlike_states(self._restored)
            for group in self._restored["optimizer_states"][0]["param_groups"]:
                group.update(self._kernels_of_optimizer)  # not those of the device that it was saved on
            self._restored = None
        if self._train_sums is not None and self.global_rank == 0:  # of all ranks together
            self.train_mean.sums = self._train_sums.to(self.device)
        if self._scheduler_state is not None and self.scheduler is not None and not self._schedule_changed:
            self.scheduler.load_state_dict(self._scheduler_state)

    def on_train_start(self) -> None:
        """Set the loader's length of an epoch, and validate first if the checkpoint was saved before a validation."""
        self._apply_changed_settings()
        self._loader.epochs.length = self.trainer.num_training_batches
        if self._validation_is_due:
            validate_again(self.trainer)

    def _loss(self, batch: Batch, stage: str, mean: WeightedMean) -> Tensor:
        loss = self.losses[stage]
        losses = loss(self(batch), batch.target.unsqueeze(1))  # (batch,)
        weights = loss.weights(losses.detach(), batch.weight)
        mean.update(losses.detach(), weights)
        return (losses * weights).sum() / weights.sum().clamp(min=1)

    def _seed_dropout(self, batch_idx: int) -> None:
        """Seed dropout by the position in the run, so that a resumed run draws the same numbers."""
        place = [self.config.training.seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def _count_dropped(self, batch: Batch) -> None:
        """Count skipped rows; with --on_missing error, stop all ranks at once."""
        if self.config.datamodule.data_config.on_missing == "error":
            decide = self.trainer.strategy.reduce_boolean_decision
            refuse_dropped(batch.dropped, elsewhere=decide(bool(batch.dropped), all=False))
        self.dropped.count(batch)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint, roughly: the weights, and as many for each of two moments of the optimizer."""
        return 3 * sum(weight.nbytes for weight in self.model.parameters())

    def divergence(self, found: str) -> TrainingError:
        """The error that ends a run whose numbers are not finite: the step, the last good checkpoint, the cure."""
        if self.good_step is None:
            saved = "No checkpoint was saved before it: start again"
        else:
            saved = f"The last good checkpoint is of step {self.good_step}: give --resume last"
        return TrainingError(
            f"step {self.trainer.global_step} (epoch {self.current_epoch}): {found}: training diverged, and nothing "
            f"was saved since. {saved} with a lower optimizer.lr, or give an earlier checkpoint; and see whether "
            "warnings above name broken wavs"
        )

    def _watch(self, loss: Tensor) -> None:
        """Note a loss that is not finite: on the CPU at once; on a GPU the one of the step before.

        There the flag is copied into pinned memory behind the forward that it is of. By the next step that copy has
        been followed by a backward and another forward, so waiting for it lets the GPU never run dry.
        """
        self.has_stepped = True
        finite = torch.isfinite(loss)
        if loss.device.type == "cuda":
            before = self._copied
            pinned = finite.to("cpu", non_blocking=True)  # torch pins what such a copy goes into
            self._copied = pinned, torch.cuda.current_stream(loss.device).record_event()
            if before is None:
                return
            finite, copied = before
            copied.synchronize()
        if not bool(finite):
            self.diverged = True

    def _refuse_not_finite(self, stage: str, loss: Tensor, mean: WeightedMean) -> None:
        """Raise TrainingError if a mean over all ranks is not finite: there was no example, or the run diverged."""
        if torch.isfinite(loss):
            return
        if float(self.trainer.strategy.reduce(mean.sums.clone(), reduce_op="sum")[1]) == 0:
            raise TrainingError(
                f"epoch {self.current_epoch}: the {stage} loss is {float(loss)}: none of its examples could be read. "
                "Skipped ones are listed above: fix the corpus or data_root"
            )
        raise self.divergence(f"the {stage} loss is {float(loss)}")

    def _refuse_not_finite_state(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise TrainingError if weights or the optimizer's state are not finite; all ranks have the same."""
        states = [state for one in checkpoint.get("optimizer_states", ()) for state in one["state"].values()]
        tensors = [*checkpoint["state_dict"].values(), *(value for state in states for value in state.values())]
        checked = [value for value in tensors if isinstance(value, Tensor) and value.is_floating_point()]
        on_device: dict[torch.device, list[Tensor]] = {
            value.device: [] for value in checked
        }  # an optimizer may count its steps on the CPU
        for value in checked:
            on_device[value.device].append(value.isfinite().all())
        if not all(bool(torch.stack(flags).all()) for flags in on_device.values()):  # waits once for each device
            raise self.divergence("weights are not finite")

    @property
    def _kernels_of_optimizer(self) -> dict[str, bool | None]:
        """Argument by which an optimizer that can takes its step in one kernel, where that saves launches: on a GPU.

        It counts its steps there too. None where the config chooses, or where gradients of 16-mixed are clipped: such
        an optimizer scales them back itself, after that.
        """
        section, training = self.config.optimizer, self.config.training
        if KERNELS & section.arguments.keys() or "fused" not in signature(section.optimizer_class).parameters:
            return {}
        scaled = training.precision == "16-mixed" and training.gradient_clip_val > 0
        return {"fused": True if self.device.type == "cuda" and not scaled else None}

    @property
    def _schedule_changed(self) -> bool:
        return any(name == "optimizer.lr" or name.startswith("scheduler.") for name in self._changed)

    def _refuse_unlike_states(self, found: Mapping[str, Any]) -> None:
        """Raise ValueError where a checkpoint's states do not fit this run's, or are no states at all."""
        (optimizer,), (state,) = self.trainer.optimizers, found["optimizer_states"]
        refuse_unlike(found["loops"]["fit_loop"], self.trainer.fit_loop.state_dict(), "loops")
        # Not the kernels, nor those that a scheduler adds, which may be another one now.
        own = [name for name in (*optimizer.defaults, "params") if name not in KERNELS]
        saved_groups, own_groups = [
            [{name: group[name] for name in own} for group in groups]
            for groups in (state["param_groups"], optimizer.state_dict()["param_groups"])
        ]
        refuse_unlike(saved_groups, own_groups, "optimizer")
        if [group["params"] for group in saved_groups] != [group["params"] for group in own_groups]:
            raise ValueError("optimizer: its parameters are numbered otherwise")
        refuse_unlike_moments(state["state"], list(self.model.parameters()))
        if self.scheduler is not None and not self._schedule_changed:
            refuse_unlike(found["separation_scheduler"], self.scheduler.state_dict(), "scheduler")

    def _apply_changed_settings(self) -> None:
        """Let the config's learning rate, weight decay and schedule win over those that a checkpoint restored.

        A schedule that changed starts anew: from the config's learning rate where that changed too, else from the one
        that the run had. `resume.tell_changed_settings` says so.
        """
        (optimizer,) = self.trainer.optimizers
        section, schedule = self.config.optimizer, self.config.scheduler
        for group in optimizer.param_groups:
            if "optimizer.weight_decay" in self._changed:
                group["weight_decay"] = section.weight_decay
            if "optimizer.lr" in self._changed:
                group["lr"] = section.lr
            if self._schedule_changed:
                group.pop("initial_lr", None)
                group.update({name: optimizer.defaults[name] for name in MOMENTA & optimizer.defaults.keys()})
        if self._schedule_changed and schedule.scheduler_class is not None:
            self.scheduler = schedule.scheduler_class(optimizer, **schedule.sche_config)

    def _record(self, val_loss: float) -> None:
        train_mean = self.train_mean.compute()
        self._refuse_not_finite("training", train_mean, self.train_mean)
        row = {"epoch": self.current_epoch, "train_loss": float(train_mean), "val_loss": val_loss, "lr": self._lr}
        tested = {} if self.test_loss is None else {"test_loss": self.test_loss}
        self.history.append({**row, **tested})
        self.test_loss = None

    def _log_times(self) -> None:
        """Log rank 0's share of waiting in this epoch, and the gigabytes that all ranks read."""
        epoch = self.times.epoch
        read = self.trainer.strategy.reduce(torch.tensor(epoch.bytes_read, device=self.device), reduce_op="sum")
        epoch = replace(epoch, bytes_read=int(read))
        self.times.end_epoch(epoch)
        self.log("wait_share", epoch.wait_share)
        self.log("gigabytes_read", epoch.bytes_read / 1e9)

    def _step_scheduler(self, val_loss: float) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(val_loss)
        elif self.scheduler is not None:
            self.scheduler.step()

    @property
    def _loader(self) -> Any:
        return self.trainer.train_dataloader

    @property
    def _val_is_sisdr(self) -> bool:
        return self.losses["val"].sdr_type == "pairwise_neg_sisdr"

    @property
    def _lr(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])


def _loss(config: Config, stage: str) -> PermutationInvariantLoss:
    section = config.loss.train if stage == "train" else config.loss.val
    return PermutationInvariantLoss(sdr_type=section.sdr_type, threshold_byloss=section.config.threshold_byloss)
