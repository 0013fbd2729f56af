"""The command train-iianet: train from raw mouths (the default), or from a store of embeddings (--shards)."""

if __name__ == "__main__":  # `python -m`, before the imports, as in iianet_cli/entry.py
    from iianet.interruption import main_of

    main_of("iianet_cli.train_cli")()

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from iianet.command_line import Parser, add_config_flags, at_least_one, command, config_overrides
from iianet.comparison.comparison_report import save_comparison
from iianet.comparison.mode_comparison import refuse_unfit_comparison, run_ways
from iianet.config.fields import CUDA_GRAPHS
from iianet.config.reference import REFERENCE_FILE, reference_config
from iianet.config.schema import Config, dump_config, load_config
from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.encoder.source import EncoderSource
from iianet.errors import ConfigError, FeatureStoreError, TrainingError
from iianet.interruption import terminable
from iianet.paths import expand_path
from iianet.run_folder import RunFolder, refuse_unwritable, refusing_full_disk, replacing
from iianet.terminal import say
from iianet.training.best_checkpoints import BestCheckpoints, epoch_of
from iianet.training.epoch_length import limited, refuse_unfit_interval
from iianet.training.last_checkpoint import AtomicCheckpointIO
from iianet.training.lightning_module import SeparationModule
from iianet.training.results import BEST_MODEL_FILE, load_best, quality, save_curves, save_ranking, save_results
from iianet.training.resume import (
    SavedRun,
    refuse_other_network,
    refuse_other_order,
    resolve_checkpoint,
    tell_changed_settings,
)
from iianet.training.step_times import StepRecorder
from iianet.training.termination import RunStopped, own_signals
from iianet.training.trainer import make_measuring_trainer, make_trainer, quieten_lightning, refuse_without_compiler
from iianet.wording import counted
from iianet_cli.flags import PREFIX, add_data_flags, data_overrides
from iianet_cli.initial_weights import load_initial_weights, refuse_two_beginnings
from iianet_cli.stores import build_command, log_mode, named_stores, open_stores, refuse_missing_weights
from loaders.build_missing import BuildMissing
from loaders.datamodule import SeparationData
from loaders.matching import kernels_of
from loaders.streams import StreamData, stream_words
from shardwriter.storage.folder import Folder

OWN_COMMAND = (sys.executable, "-m", "iianet_cli.train_cli")
"""What starts this command again, in a clone and from the wheel."""

UNFIT = (ArithmeticError, AttributeError, LookupError, MisconfigurationException, RuntimeError, TypeError, ValueError)
"""What Lightning and torch raise where a checkpoint's states are not what they expect."""

logger = logging.getLogger(__name__)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Train IIANet. The default encodes raw mouths in every step; --shards, or `shards:` with "
        "`use_precomputed_embeddings: true` in the config, trains from a store.",
        example=f"{prog} --conf_dir configs/LRS2-IIANet.yml --shards STORE --resume auto",
    )
    add_config_flags(parser)
    add_data_flags(parser, "train")
    parser.add_argument(
        "--build_missing", action="store_true", help="add missing utterances to the store before the first epoch"
    )
    parser.add_argument(
        "--precision",
        choices=["32-true", "bf16-mixed", "16-mixed"],
        help="arithmetic of the separator (default 32-true); the lip encoder uses the store's",
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="true",
        choices=["true", CUDA_GRAPHS],
        help=f"compile the separator with torch.compile; --compile {CUDA_GRAPHS} also lets a GPU record its kernels "
        "once and start them together",
    )
    parser.add_argument(
        "--resume",
        metavar="last|auto|PATH",
        help="resume from this experiment's last.ckpt, or from a checkpoint; auto: from last.ckpt if there is one, so "
        "that one command line serves the first start and every later one",
    )
    parser.add_argument(
        "--init_from",
        metavar="FILE",
        help="begin a new run from the separator's weights in this file: a best_model.pth, a published one too, or a "
        "checkpoint; with --resume auto only where no run is there to resume",
    )
    parser.add_argument(
        "--exp_dir", metavar="DIR", default="Experiments", help="folder that results go below (default Experiments)"
    )
    parser.add_argument(
        "--compare_modes",
        type=at_least_one,
        metavar="STEPS",
        help="measure STEPS training steps of raw mode and of the store in turns, and keep no model; with --precision "
        "or --compile, also without them. Prints a table; writes a chart and a JSON file below --exp_dir",
    )
    # For the processes that --compare_modes starts.
    parser.add_argument("--record_steps", type=at_least_one, help=argparse.SUPPRESS)
    parser.add_argument("--record_file", type=Path, help=argparse.SUPPRESS)
    return parser


def _run(argv: list[str], prog: str) -> int:
    arguments = _parser(prog).read(argv)
    config = load_config(arguments.conf_dir, [*config_overrides(arguments), *_own_overrides(arguments)])
    refuse_two_beginnings(arguments.init_from, arguments.resume)
    if arguments.record_steps:
        logging.getLogger().setLevel(logging.WARNING)
    reads_stores = config.datamodule.data_config.use_precomputed_embeddings
    source = config.encoder_source(encodes=not reads_stores or bool(arguments.compare_modes))
    if arguments.compare_modes:
        return _compare_modes(arguments, config, source)
    if not arguments.record_steps:
        log_mode(config, raw_is_meant=arguments.no_shards)
    streams = stream_words(config.datamodule.data_config)
    snapshots = [] if streams else open_stores(config, source)
    folder = RunFolder(expand_path(arguments.exp_dir) / "checkpoint", config.exp.exp_name)
    will_build = bool(snapshots) and config.datamodule.data_config.build_missing
    names = ("train", "val", *(["test"] if config.training.test_every_n_epochs else []))
    stored = SeparationData(config, snapshots, build_command(arguments, config), will_build, names)
    data = StreamData(config, streams) if streams else stored
    data.prepare_splits()  # data that cannot be used is reported before anything is written
    if snapshots:
        refuse_missing_weights(source, stored)
    quieten_lightning()
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    module = SeparationModule(config, LazyEncoder(source, kernels_of(snapshots, source)))
    _try_optimizer(module)
    if arguments.record_steps:
        return _record_steps(module, data, arguments.record_steps, arguments.record_file)
    first = [BuildMissing(config, Folder(Path(named_stores(config)[0])), stored)] if will_build else []
    trainer = make_trainer(config, folder, first)
    data.trainer = trainer  # it knows the number of ranks
    module.order = data.order_facts() if isinstance(data, StreamData) else _order_facts(config, data)
    saved = resolve_checkpoint(arguments.resume, folder)
    if saved is not None:
        refuse_other_network(saved, module.model)
        refuse_other_order(saved, module.order)
        tell_changed_settings(saved, config)
        logger.info("Resuming from %s", saved.path)
        module.init_from = saved.init_from
        if arguments.init_from is not None:
            logger.info("--init_from %s is not used: it is for a new run", arguments.init_from)
    elif arguments.init_from is not None:
        module.init_from = load_initial_weights(arguments.init_from, config, folder.path, module.model)
    if config.training.compile:
        refuse_without_compiler(config.training, trainer.strategy.root_device)
    if not trainer.is_global_zero:
        return fit(trainer, module, data, folder.path, saved)
    fresh = saved is None or not saved.is_in(folder.path)
    with folder.claimed(fresh, 2 * module.checkpoint_bytes):
        _write_config(arguments, config, folder.path, module.init_from)
        return fit(trainer, module, data, folder.path, saved)


def _compare_modes(arguments: argparse.Namespace, config: Config, source: EncoderSource) -> int:
    """Measure raw mode against the store, without reading or writing what training keeps."""
    kept = [f"--{name}" for name in ("resume", "init_from") if getattr(arguments, name) is not None]
    refuse_unfit_comparison(config, kept, stream_words(config.datamodule.data_config))
    open_stores(config, source)  # an unfit store is refused before the minutes of raw mode
    folder = expand_path(arguments.exp_dir) / "compare_modes"
    refuse_unwritable(folder)
    with terminable():  # SIGTERM ends the measured run too
        figures = run_ways(config, OWN_COMMAND, arguments.compare_modes)
    say(save_comparison(figures, config, arguments.compare_modes, folder))
    return 0


def _record_steps(module: SeparationModule, data: SeparationData | StreamData, steps: int, file: Path) -> int:
    """Measure one run for --compare_modes."""
    recorder = StepRecorder(steps)
    trainer = make_measuring_trainer(module.config, recorder)
    data.trainer = trainer
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        recorder.record(trainer).save(file)
    return 0


def _order_facts(config: Config, data: SeparationData) -> dict[str, Any]:
    """Collect what decides the order of the examples; a checkpoint's position is valid for equal facts only.

    Raises:
        ConfigError: The training section's limits and intervals do not fit the number of batches.
    """
    training, order = config.training, data.order("train")
    batches = limited(order.num_batches, training.limit_train_batches, "limit_train_batches")
    limited(data.order("val").num_batches, training.limit_val_batches, "limit_val_batches")
    refuse_unfit_interval(training, batches)
    return {**data.order_facts(), "global batch": order.global_batch, "batches in an epoch": batches}


def _write_config(arguments: argparse.Namespace, config: Config, folder: Path, init_from: Mapping[str, str]) -> None:
    """Write the run's conf.yml, and beside it what the reference opens of it."""
    main_args: dict[str, Any] = {"conf_dir": arguments.conf_dir, "exp_dir": str(folder)}
    if init_from:
        main_args["init_from"] = dict(init_from)
    config = config.model_copy(update={"main_args": main_args})
    with replacing(folder / "conf.yml") as stream:
        stream.write(dump_config(config).encode())
    if (text := reference_config(config)) is not None:
        with replacing(folder / REFERENCE_FILE) as stream:
            stream.write(text.encode())


def _try_optimizer(module: SeparationModule) -> None:
    """Raise ConfigError where torch refuses the values of the optimizer or the scheduler."""
    try:
        module.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer or scheduler: torch refuses the values: {error}") from error


def fit(
    trainer: pl.Trainer,
    module: SeparationModule,
    data: pl.LightningDataModule,
    folder: Path,
    saved: SavedRun | None,
) -> int:
    """Run the Trainer and save the results; returns the exit code."""
    epochs = module.config.training.epochs
    if saved is not None and saved.epochs_done >= epochs:
        logger.info(
            "%s trained already, training.epochs is %d; raise it to go on", counted(saved.epochs_done, "epoch"), epochs
        )
        module.history = saved.history
        return _end(trainer, module, folder, saved.best if saved.is_in(folder) else {})
    batch_size = module.config.datamodule.data_config.batch_size
    logger.info(
        "training on %s, %s, %d examples per step",
        "gpu" if trainer.strategy.root_device.type == "cuda" else "cpu",
        counted(trainer.world_size, "rank"),
        batch_size * trainer.world_size * trainer.accumulate_grad_batches,
    )
    try:
        with own_signals(), refusing_full_disk(folder):
            trainer.fit(module, datamodule=data, ckpt_path=None if saved is None else saved.path, weights_only=True)
    except SystemExit as stop:  # Lightning's answer to a signal before the first step, and to a second Ctrl-C
        raise (stop.__context__ if isinstance(stop.__context__, KeyboardInterrupt) else stop) from None
    except RunStopped as stop:
        logger.warning("%s", stop)
        if trainer.is_global_zero:
            save_curves(folder, module.history, module.config)
        return 128 + stop.number
    except FeatureStoreError as error:
        error.exit_code = TrainingError.exit_code if module.has_stepped else FeatureStoreError.exit_code
        raise
    except torch.OutOfMemoryError:  # a RuntimeError, of which no checkpoint is guilty
        raise
    except UNFIT as error:
        checkpoints = trainer.strategy.checkpoint_io
        assert isinstance(checkpoints, AtomicCheckpointIO)
        if saved is None or not checkpoints.restoring:
            raise
        raise ConfigError(
            f"--resume {saved.path}: what it holds cannot be restored: {type(error).__name__}: {error}. Give another "
            "checkpoint of the run, or start a new one without --resume"
        ) from error
    if module.has_stepped:
        logger.info("%s", module.times.run)
    best = trainer.checkpoint_callback
    assert isinstance(best, BestCheckpoints)
    return _end(trainer, module, folder, best.scores)


def _end(trainer: pl.Trainer, module: SeparationModule, folder: Path, scores: Mapping[str, float]) -> int:
    """Save the results of a run that is done, and say which epoch was the best."""
    if not trainer.is_global_zero:
        return 0
    save_curves(folder, module.history, module.config)
    best = next((name for name in scores if (folder / name).is_file()), None)
    if best is None:
        save_ranking(folder, {})
        logger.info("no best checkpoint was kept; results: %s", folder)
        return 0
    load_best(folder, best, module.model)
    save_results(folder, module.model, module.config, scores)
    logger.info(
        "best: validation %s %.2f dB in epoch %d; %s, as a model %s",
        quality(module.config, "val"),
        -scores[best],
        epoch_of(best),
        folder / best,
        folder / BEST_MODEL_FILE,
    )
    return 0


def _own_overrides(arguments: argparse.Namespace) -> list[str]:
    """Overrides that the command's own flags stand for."""
    overrides = data_overrides(arguments)
    if arguments.build_missing:
        overrides.append(f"{PREFIX}.build_missing=true")
    if arguments.precision is not None:
        overrides.append(f"training.precision={arguments.precision}")
    if arguments.compile is not None:
        overrides.append(f"training.compile={arguments.compile}")
    return overrides


main = command(_run, "train-iianet")
"""Start the command."""
