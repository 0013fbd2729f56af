"""The Trainer of a run: devices, callbacks and loggers as the training section sets them."""

import logging
import signal
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from iianet.config.fields import CUDA_GRAPHS
from iianet.config.schema import Config
from iianet.config.sections import TrainingSection
from iianet.errors import ConfigError
from iianet.launch import Launch, training_devices
from iianet.run_folder import RunFolder
from iianet.terminal import complain
from iianet.training.best_checkpoints import BestCheckpoints
from iianet.training.last_checkpoint import AtomicCheckpointIO, LastCheckpoint
from iianet.training.progress import Bar, progress
from iianet.training.results import quality
from iianet.training.step_times import StepRecorder
from iianet.training.termination import waiting
from iianet.training.testing import PeriodicTest
from iianet.wording import counted

logger = logging.getLogger(__name__)

NO_FOLDER = "none"
"""Name of a folder that does not exist, where Lightning looks for checkpoints that Slurm's requeue left: it would take
them up unasked, without the checks of --resume."""


def quieten_lightning() -> None:
    """Hide Lightning's advertisements, and its warnings about what is intended."""
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").setLevel(logging.WARNING)
    for message in (
        ".*IterableDataset. has .__len__. defined.*",  # it is exact for any number of workers
        ".*exists and is not empty.*",  # conf.yml lies there
        ".*smaller than the logging interval.*",  # epochs are logged too
        ".*was called before the ``update`` method.*",  # a mean's sums may come from a checkpoint
        ".*It is recommended to use .self.log.*sync_dist=True.*",  # what is logged is of all ranks already
        ".*but have no logger configured.*",  # where steps are measured
        ".*LeafSpec.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message)


def make_trainer(config: Config, folder: RunFolder, first: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """Make the Trainer of a run, with its callbacks after the caller's own."""
    training = config.training
    callbacks = [*first, *_callbacks(config, folder)]
    return pl.Trainer(
        **_arithmetic(training, AtomicCheckpointIO(folder.path)),
        max_epochs=training.epochs,
        callbacks=callbacks,
        enable_progress_bar=any(isinstance(callback, Bar) for callback in callbacks),
        logger=_loggers(config, folder.path),
        log_every_n_steps=training.log_every_n_steps,
        default_root_dir=folder.path / NO_FOLDER,
        limit_val_batches=_all_or(training.limit_val_batches),
        val_check_interval=_all_or(training.val_check_interval),
    )


def make_measuring_trainer(config: Config, recorder: StepRecorder) -> pl.Trainer:
    """Make a Trainer of the same steps that never validates, writes nothing, and ends when the recorder is done."""
    return pl.Trainer(
        **_arithmetic(config.training),
        max_epochs=-1,
        callbacks=[recorder],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )


def _arithmetic(training: TrainingSection, *plugins: AtomicCheckpointIO) -> dict[str, Any]:
    """Arguments of the Trainer that decide what steps compute, and where; and its plugins.

    TF32, for which the Trainer has no argument, is set here.
    """
    launch = Launch.for_training()
    if launch is not None:
        launch.refuse_other_nodes(training.num_nodes)
    accelerator, devices = training_devices(training.gpus, launch)
    _refuse_half_on_cpu(training, accelerator)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = training.tf32
    num_nodes = launch.num_nodes if launch else training.num_nodes
    ranks = num_nodes * (devices if isinstance(devices, int) else len(devices))
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "plugins": [*plugins, _cluster(launch)],
        "strategy": "auto" if ranks == 1 else Ranks(),
        "precision": training.precision,
        "benchmark": training.cudnn_benchmark,
        "gradient_clip_val": training.gradient_clip_val,
        "accumulate_grad_batches": training.accumulate_grad_batches,
        "use_distributed_sampler": False,  # the loaders know their rank
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "limit_train_batches": _all_or(training.limit_train_batches),
    }


class Ranks(DDPStrategy):
    """Lightning's ranks, which say whom they wait for and end on signals while they do."""

    _hosts: torch.distributed.ProcessGroup | None = None
    """Of the processors, where the ranks' own group is of GPUs."""

    def setup_distributed(self) -> None:
        """Wait for the other ranks. Raises ConfigError where they do not come within the time limit of torch."""
        environment = self.cluster_environment
        assert environment is not None
        place = f"{environment.main_address}:{environment.main_port}"
        others = f"the other ranks, {self.world_size} on {counted(self.num_nodes, 'machine')}, at {place}"
        try:
            with waiting(f"waiting for {others}", self._tell, self._end_started):
                super().setup_distributed()
                if torch.distributed.get_backend() != "gloo":
                    self._hosts = torch.distributed.new_group(backend="gloo")
        except RuntimeError as error:
            raise ConfigError(
                f"waited in vain for {others}: {str(error).strip().splitlines()[0]}. Start train.py on each machine of "
                "training.num_nodes, with one MASTER_ADDR and MASTER_PORT that all can reach"
            ) from error

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all ranks decide so, or any of them. The processors agree on it; GPUs would have to finish first."""
        votes = torch.tensor(int(decision))
        operator = torch.distributed.ReduceOp.MIN if all else torch.distributed.ReduceOp.MAX
        torch.distributed.all_reduce(votes, operator, group=self._hosts)
        return bool(votes)

    def _tell(self, words: str) -> None:
        """Say something once on each machine; only the first rank's log is shown."""
        if self.is_global_zero:
            logger.info("%s", words)
        elif self.local_rank == 0:
            complain(words)

    def _end_started(self, _: int) -> None:
        """End the ranks that this one started on its machine."""
        if isinstance(self.launcher, _SubprocessScriptLauncher):
            self.launcher.kill(signal.SIGTERM)


def refuse_without_compiler(training: TrainingSection, device: torch.device) -> None:
    """Compile a line of arithmetic, as --compile does the separator, before anything is written.

    Raises:
        ConfigError: torch.compile does not work on the device, for example because there is no C++ compiler; or CUDA
            graphs are asked for where there can be none.
    """
    if training.compile == CUDA_GRAPHS and device.type != "cuda":
        raise ConfigError(
            f"--compile {CUDA_GRAPHS}: CUDA graphs need a GPU of NVIDIA, and training runs on {device}; give --compile "
            "alone, or name existing GPUs in training.gpus"
        )
    if training.compile == CUDA_GRAPHS and training.checkpoint_activations:
        raise ConfigError(
            f"--compile {CUDA_GRAPHS}: a graph keeps what training.checkpoint_activations would compute once more; "
            "give --compile alone, or set training.checkpoint_activations=false"
        )
    logger.info("--compile: trying the compiler")
    unlike_any_other = float(time.time_ns())  # what was compiled before is not compiled again
    try:
        torch.compile(lambda numbers: numbers + unlike_any_other)(torch.ones(2, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        raise ConfigError(
            f"--compile: torch.compile does not work on {device}: {str(error).strip().splitlines()[0]}. Install a C++ "
            "compiler such as g++, with Python's headers, or name it in CXX; or leave --compile (training.compile) out"
        ) from error


def _cluster(launch: Launch | None) -> ClusterEnvironment:
    """What tells Lightning the ranks; left to itself, it takes variables that were left over for a launch."""
    if launch is None:
        return LightningEnvironment()
    return TorchElasticEnvironment() if launch.by == "torchrun" else SLURMEnvironment(auto_requeue=False)


def _refuse_half_on_cpu(training: TrainingSection, accelerator: str) -> None:
    """Raise ConfigError for 16-mixed without a GPU; Lightning would use another precision instead."""
    if training.precision == "16-mixed" and accelerator == "cpu":
        raise ConfigError(
            "training.precision is 16-mixed and training runs on the CPU, which does not support it; give "
            "--precision bf16-mixed or 32-true, or name existing GPUs in training.gpus"
        )


def _all_or(limit: float | None) -> float:
    return 1.0 if limit is None else limit


def _callbacks(config: Config, folder: RunFolder) -> list[pl.Callback]:
    training = config.training
    last, shown = LastCheckpoint(folder.last, training.checkpoint_every_n_steps), progress(training.epochs)
    callbacks: list[pl.Callback] = [BestCheckpoints(folder.path, config), last, *shown]
    if training.test_every_n_epochs is not None:
        callbacks.append(PeriodicTest(training.test_every_n_epochs, last.stop_if_asked, shown[0].tell_test))
    if training.early_stop is not None:
        callbacks.append(EarlyStopping(config))
    return callbacks


class EarlyStopping(pl.callbacks.EarlyStopping):
    """Lightning's early stopping, checked after validation, whose decision holds for a resumed run too.

    Lightning's checkpoints hold how long nothing improved, but a resumed run first trains another epoch; and they hold
    the patience, which would win over the config's. What it says of every validation is in the line of each epoch.
    """

    def __init__(self, config: Config) -> None:
        assert config.training.early_stop is not None
        wishes = config.training.early_stop.model_dump()
        self.tells, self.figure = wishes.pop("verbose"), quality(config, "val")
        super().__init__(**wishes, verbose=False, check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop where nothing improved for long enough, and say so."""
        super().on_validation_end(trainer, pl_module)
        if self.tells and trainer.should_stop and self.wait_count >= self.patience:
            logger.info(
                "early stop: validation %s was not above %.2f dB in the last %s (training.early_stop.patience)",
                self.figure,
                -float(self.best_score),
                counted(self.wait_count, "validation"),
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore everything but the patience. Raises ValueError or TypeError where it is no such state."""
        counts = {name: int(state_dict[name]) for name in ("wait_count", "stopped_epoch", "stopping_reason")}
        best = torch.as_tensor(float(state_dict["best_score"]))
        super().load_state_dict({**state_dict, **counts, "best_score": best, "patience": self.patience})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop at once if the run had stopped early, unless its patience was raised."""
        if self.wait_count >= max(self.patience, 1):
            logger.warning(
                "training had stopped early: %s did not improve in %d validations; to continue, raise "
                "training.early_stop.patience",
                self.monitor,
                self.wait_count,
            )
            trainer.should_stop = True


def _loggers(config: Config, folder: Path) -> list[Logger]:
    """Make the loggers that training.loggers names; they write below the run's folder, and are moved with it."""
    name, requested = config.exp.exp_name, config.training.loggers
    loggers: list[Logger] = []
    if "tensorboard" in requested:
        loggers.append(TensorBoardLogger(folder, name="tensorboard"))
    if "csv" in requested:
        loggers.append(CSVLogger(folder, name="csv"))
    if "wandb" in requested:
        if find_spec("wandb") is None:
            raise ConfigError(
                'training.loggers names wandb, which is not installed: pip install ".[wandb]" in the project\'s folder'
            )
        loggers.append(WandbLogger(name=name, save_dir=folder))
    return loggers
