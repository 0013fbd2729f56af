"""Train IIANet: from raw mouths (the default), or from a store of embeddings (--shards)."""

import argparse
import json
import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from configs.command_line import add_config_flags, config_overrides, run_command
from configs.errors import ConfigError
from configs.schema import Config, dump_config, load_config
from iianet.devices import choose_devices
from iianet.encoder_source import EncoderSource
from iianet.lazy_encoder import LazyEncoder
from iianet.lightning_module import MONITORED, SeparationModule
from iianet.results import (
    LAST_CHECKPOINT,
    keep_earlier_run,
    refuse_other_network,
    resolve_checkpoint,
    save_results,
)
from iianet.termination import TERMINATED, Terminated, Termination
from loaders.datamodule import SeparationData
from loaders.matching import refuse_other_encoder
from shardwriter.catalog import Catalog

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    sys.exit(run_command(_run, argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train IIANet. The default encodes raw mouths in every step; --shards, or `shards:` with "
        "`use_precomputed_embeddings: true` in the config, trains from a store. Flags may be written with - or _.",
    )
    add_config_flags(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--shards", metavar="STORE", help="train from this store")
    source.add_argument("--no_shards", action="store_true", help="train from raw mouths, whatever the config says")
    parser.add_argument(
        "--use_precomputed_embeddings", action="store_true", help="train from the store that the config names"
    )
    parser.add_argument(
        "--on_missing",
        choices=["encode", "skip", "error"],
        help="what to do with utterances that the store lacks: encode them in the step (default), skip them, or stop",
    )
    parser.add_argument("--resume", metavar="last|PATH", help="go on from a checkpoint")
    return parser


def _run(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    config = load_config(arguments.conf_dir, [*config_overrides(arguments), *_own_overrides(arguments)])
    source = EncoderSource.from_config(config)
    catalog = _open_store(config, source)
    folder = Path("Experiments", "checkpoint", config.exp.exp_name).absolute()
    data = SeparationData(config, catalog, _build_command(arguments, config))
    data.prepare_splits()  # what cannot be trained on is said before anything is written
    _quieten_lightning()
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    module = SeparationModule(config, LazyEncoder(source))
    _try_optimizer(module)
    resume = resolve_checkpoint(arguments.resume, folder)
    if resume is None:
        keep_earlier_run(folder)
    else:
        refuse_other_network(resume, module.model)
    folder.mkdir(parents=True, exist_ok=True)
    config = config.model_copy(update={"main_args": {"conf_dir": arguments.conf_dir, "exp_dir": str(folder)}})
    (folder / "conf.yml").write_text(dump_config(config), encoding="utf-8")
    return fit(config, module, data, folder, resume)


def _try_optimizer(module: SeparationModule) -> None:
    """Raise ConfigError where torch refuses the values of the optimizer or the scheduler."""
    try:
        module.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer or scheduler: torch refuses the values: {error}") from error


def _open_store(config: Config, source: EncoderSource) -> Catalog | None:
    """The store to train from; None is raw mode."""
    data = config.datamodule.data_config
    if not data.use_precomputed_embeddings:
        return None
    if data.shards is None:
        raise ConfigError(
            "datamodule.data_config.use_precomputed_embeddings is true, but no store is named: build one with "
            "build-shards and give --shards STORE, or train from raw mouths with --no_shards. "
            "(The earlier tool's *_embedding.npz files are not read.)"
        )
    catalog = Catalog.open(Path(data.shards))
    refuse_other_encoder(catalog, source)
    return catalog


def _build_command(arguments: argparse.Namespace, config: Config) -> str:
    shards = str(config.datamodule.data_config.shards)
    words = ["build-shards", "--conf_dir", arguments.conf_dir, "--data_split", "all", "--shards", shards]
    words += ["--data_root", arguments.data_root] if arguments.data_root else []
    sections = ("datamodule.", "shardwriter.", "videonet.")
    overrides = [word for group in arguments.overrides for word in group if word.startswith(sections)]
    words += ["--set", *overrides] if overrides else []
    return shlex.join(words)


def fit(config: Config, module: SeparationModule, data: SeparationData, folder: Path, resume: Path | None) -> int:
    """Run the Trainer and save the results; returns the exit code."""
    accelerator, devices = choose_devices(config.training.gpus)
    checkpoint = pl.callbacks.ModelCheckpoint(
        folder,
        filename="{epoch}",
        monitor=MONITORED,
        mode="min",
        save_top_k=config.training.save_top_k,
        save_last=True,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    callbacks: list[pl.Callback] = [checkpoint, Termination(folder / LAST_CHECKPOINT)]
    if config.training.early_stop is not None:
        early_stop = config.training.early_stop.model_dump()
        callbacks.append(pl.callbacks.EarlyStopping(**early_stop, check_on_train_epoch_end=False))
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="auto" if isinstance(devices, int) or len(devices) == 1 else "ddp",
        max_epochs=config.training.epochs,
        gradient_clip_val=config.training.gradient_clip_val,
        callbacks=[*callbacks, _Bar(leave=True)],
        logger=_loggers(config, folder),
        log_every_n_steps=config.training.log_every_n_steps,
        default_root_dir=folder,
        use_distributed_sampler=False,  # the loaders know their rank
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    logger.info(
        "training on %s, %d rank(s), %d examples per step", accelerator, trainer.world_size, _step(config, trainer)
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except Terminated as stop:
        logger.warning("%s", stop)
        return TERMINATED
    if trainer.is_global_zero:
        save_results(folder, module.model, checkpoint, module.history)
        logger.info("results: %s", folder)
    return 0


def _quieten_lightning() -> None:
    """Leave out what is no news: advertisements, and warnings of what is meant to be so."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*IterableDataset. has .__len__. defined.*",  # it is exact for any number of workers
        ".*exists and is not empty.*",  # conf.yml lies there
        ".*smaller than the logging interval.*",  # epochs are logged too
        ".*LeafSpec.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message)


class _Bar(pl.callbacks.TQDMProgressBar):
    """Loss, validation figure and examples/s beside the bar, without Lightning's version number."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What to show."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


def _loggers(config: Config, folder: Path) -> list[Logger]:
    """Those that training.loggers names; W&B where it is installed."""
    name, wished = config.exp.exp_name, config.training.loggers
    loggers: list[Logger] = []
    if "tensorboard" in wished:
        loggers.append(TensorBoardLogger("Experiments/tensorboard_logs", name=name))
    if "csv" in wished:
        loggers.append(CSVLogger(folder, name="csv"))
    if "wandb" in wished:
        if find_spec("wandb") is None:
            raise ConfigError(
                'training.loggers names wandb, which is not installed: pip install "iianet-shards[wandb]"'
            )
        loggers.append(WandbLogger(name=name, save_dir=folder))
    return loggers


def _step(config: Config, trainer: pl.Trainer) -> int:
    return config.datamodule.data_config.batch_size * trainer.world_size


def _own_overrides(arguments: argparse.Namespace) -> list[str]:
    """The command line wins over the config: --shards and --no_shards decide the mode, else the config does."""
    prefix = "datamodule.data_config"
    overrides = []
    if arguments.shards is not None:
        overrides.append(f"{prefix}.shards={json.dumps(arguments.shards)}")
    if arguments.shards is not None or arguments.use_precomputed_embeddings:
        overrides.append(f"{prefix}.use_precomputed_embeddings=true")
    if arguments.no_shards:
        overrides.append(f"{prefix}.use_precomputed_embeddings=false")
    if arguments.on_missing is not None:
        overrides.append(f"{prefix}.on_missing={arguments.on_missing}")
    return overrides


if __name__ == "__main__":
    main()
