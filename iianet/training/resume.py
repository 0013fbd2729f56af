"""The checkpoint that a run resumes from: read once, checked against the config, and what changes by it."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from iianet.checkpoint import NETWORK, read_checkpoint
from iianet.config.key_paths import flattened
from iianet.config.optim_sections import SchedulerSection
from iianet.config.schema import Config
from iianet.errors import ConfigError, WeightsError
from iianet.paths import expand_path
from iianet.run_folder import RunFolder
from iianet.separator.model import IIANet
from iianet.wording import counted, show

logger = logging.getLogger(__name__)

OWN_ENTRIES = ("state_dict", "history", "order", "settings", "best_checkpoints", "epochs_done", "separation_scheduler")
"""Entries that train.py's checkpoints have, and those of others not all."""
POSITION = "SeparationData"
"""Entry of the loader's position, which Lightning names by its class."""
FIGURES = ("epoch", "train_loss", "val_loss", "lr")
"""Figures of an epoch in the history."""
TEST_FIGURE = "test_loss"
"""One more, of epochs after which the test split was run."""
SETTINGS = (
    "audionet",
    "videonet",
    "loss",
    "optimizer",
    "scheduler",
    "training.accumulate_grad_batches",
    "training.gradient_clip_val",
    "training.precision",
    "training.tf32",
    "training.val_check_interval",
    "training.early_stop",
    "datamodule.data_config.normalize_audio",
    "datamodule.data_config.augment_mouth",
    "datamodule.data_config.embedding_augmentation",
)
"""Keys and sections that say what steps compute, besides the order of the examples."""
APPLIED = {"optimizer.lr", "optimizer.weight_decay"}
"""Keys of the optimizer that may change on resume; the state that it keeps belongs to the other ones."""
ABSENT = "not recorded"
KINDS: Mapping[type, Any] = {int: int, float: int | float, type(None): type(None) | int | float | str}
"""Type of a state's value -> types that a saved one may have instead, where not that type alone."""


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a checkpoint of train.py says of its run; values are checked when it is read.

    Attributes:
        path: Path of the checkpoint.
        shapes: Shape of each tensor of the separator, by name.
        history: Figures of each epoch, see `FIGURES` and `TEST_FIGURE`.
        order: Facts that decided the order of the examples, by name.
        settings: Settings of its steps as JSON texts, by dotted key.
        init_from: Path and sha256 of the file whose weights it began from; empty where it drew them.
        best: Validation losses of its best checkpoints, by file name in the checkpoint's folder.
        epochs_done: Epochs that were trained and validated to their end.
        step: Optimizer steps made.
    """

    path: Path
    shapes: Mapping[str, torch.Size]
    history: list[dict[str, float]]
    order: Mapping[str, str | float | None]
    settings: Mapping[str, str]
    init_from: Mapping[str, str]
    best: Mapping[str, float]
    epochs_done: int
    step: int

    @classmethod
    def read(cls, path: Path) -> "SavedRun":
        """Read a checkpoint. Raises WeightsError where it is damaged, ConfigError where train.py did not write it."""
        found = read_checkpoint(path)
        missing = [name for name in OWN_ENTRIES if name not in found]
        if missing:
            raise ConfigError(
                f"--resume {path}: not a checkpoint of train.py, it has no {', '.join(missing)}; give a last.ckpt or "
                "epoch=N.ckpt that this version of it wrote, or begin a new run from its weights with --init_from"
            )
        try:
            return cls.parse(path, found)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise ConfigError(
                f"--resume {path}: its entries are not what train.py writes: {error}. Give another checkpoint of the "
                "run"
            ) from error

    @classmethod
    def parse(cls, path: Path, found: Mapping[str, Any]) -> "SavedRun":
        """Check what a checkpoint holds. Raises TypeError, ValueError, AttributeError or LookupError."""
        tensors = {name: value for name, value in found["state_dict"].items() if name.startswith(NETWORK)}
        if "stream" not in found["order"]:  # a stream has no position, its epochs start over
            _refuse_other_position(found)
        return cls(
            path=path,
            shapes={name.removeprefix(NETWORK): _only(value, Tensor).shape for name, value in tensors.items()},
            history=[_figures(row) for row in _only(found["history"], list)],
            order={
                _only(name, str): _only(value, str, int, float, type(None)) for name, value in found["order"].items()
            },
            settings=_texts(found["settings"]),
            init_from=_texts(found.get("init_from", {})),
            best={checkpoint_name(name): _number(loss) for name, loss in found["best_checkpoints"].items()},
            epochs_done=_whole(found["epochs_done"]),
            step=_whole(found["global_step"]),
        )

    def is_in(self, folder: Path) -> bool:
        """Whether the checkpoint lies in a run's folder, so that its best ones do, too."""
        return self.path.resolve().parent == folder.resolve()


def checkpoint_name(name: object) -> str:
    """The name of a checkpoint, which is one file's in its run's folder. Raises ValueError where it is another one."""
    if not isinstance(name, str) or PurePath(name).name != name or not name.endswith(".ckpt"):
        raise ValueError(f"found {show(name)}, expected the name of a *.ckpt file in its folder")
    return name


def _refuse_other_position(found: Mapping[str, Any]) -> None:
    """Raise TypeError, ValueError or LookupError where the loader would not resume where the loops do."""
    progress, epoch = found["loops"]["fit_loop"]["epoch_loop.batch_progress"], _whole(found["epoch"])
    is_over, batch = progress["is_last_batch"], _whole(progress["current"]["ready"])
    expected = {"epoch": epoch + 1, "batch": 0} if is_over else {"epoch": epoch, "batch": batch}
    restored_by_lightning = found["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    for position in (found.get(POSITION), *restored_by_lightning):
        if position != expected or not all(type(number) is int for number in position.values()):
            raise ValueError(f"{POSITION}: found {show(position)}, expected {expected}, where its loops stand")


def _figures(row: Any) -> dict[str, float]:
    names = FIGURES if TEST_FIGURE not in row else (*FIGURES, TEST_FIGURE)
    return {name: _number(row[name]) for name in names}


def _texts(found: Any) -> dict[str, str]:
    return {_only(name, str): _only(value, str) for name, value in found.items()}


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"found {show(value)}, expected a whole number from 0 on")
    return value


def _only(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"found {show(value)}, expected {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def _number(value: Any) -> float:
    number: float = _only(value, int, float)
    if not math.isfinite(number):
        raise ValueError(f"found {number}, expected a finite number")
    return number


def refuse_unlike(found: Any, own: Any, place: str) -> None:
    """Raise ValueError where a saved state is built otherwise than the one that it is to replace.

    Args:
        found: State out of a checkpoint.
        own: State as this process has it. An empty mapping stands for any.
        place: Name of the state, for the error message.
    """
    if isinstance(own, dict) and isinstance(found, dict):
        if own and found.keys() != own.keys():
            raise ValueError(
                f"{place}: found the keys {show(sorted(map(str, found)))}, expected {sorted(map(str, own))}"
            )
        for key in own:
            refuse_unlike(found[key], own[key], f"{place}.{key}")
    elif isinstance(own, list | tuple) and isinstance(found, list | tuple):
        if len(own) != len(found):
            raise ValueError(f"{place}: found {len(found)} values, expected {len(own)}")
        for number, (one, other) in enumerate(zip(found, own, strict=True)):
            refuse_unlike(one, other, f"{place}.{number}")
    elif not (isinstance(found, KINDS.get(type(own), type(own))) and isinstance(found, bool) == isinstance(own, bool)):
        raise ValueError(f"{place}: found {show(found)}, expected {show(own)} or another of its kind")


def refuse_unlike_moments(found: Mapping[Any, Any], parameters: list[Tensor]) -> None:
    """Raise ValueError where what an optimizer keeps is not of its parameters, each in its shape.

    Args:
        found: State of each parameter by its number, out of a checkpoint; empty before the first step.
        parameters: The parameters.
    """
    if not found.keys() <= set(range(len(parameters))):
        raise ValueError(f"optimizer: found the states {show(sorted(map(str, found)))} of {len(parameters)} parameters")
    for number, state in found.items():
        for name, value in _only(state, dict).items():
            shape = parameters[_only(number, int)].shape
            if isinstance(value, Tensor) and value.dim() and value.shape != shape:
                raise ValueError(
                    f"optimizer.{number}.{name}: found the shape {tuple(value.shape)}, expected {tuple(shape)}"
                )


def resolve_checkpoint(resume: str | None, folder: RunFolder) -> SavedRun | None:
    """Read the checkpoint to resume from.

    Args:
        resume: Value of --resume: `last` of this experiment, `auto` for that one where there is one, or a path.
        folder: Folder of this experiment.

    Returns:
        The run so far; None for a new one.

    Raises:
        ConfigError: There is no such checkpoint, or train.py did not write it.
        WeightsError: It is damaged.
    """
    if resume is None:
        return None
    if resume == "auto" and not folder.last.exists():
        logger.info("--resume auto: %s does not exist, a new run begins", folder.last)
        return None
    path = folder.last if resume in ("auto", "last") else expand_path(resume)
    if not path.is_file():
        found = ", ".join(sorted(other.name for other in path.parent.glob("*.ckpt"))) or "none"
        named = "" if resume == str(path) else f"{path} "
        raise ConfigError(f"--resume {resume}: {named}does not exist; checkpoints there: {found}")
    try:
        return SavedRun.read(path)
    except WeightsError as error:
        others = sorted(other for other in path.parent.glob("epoch=*.ckpt") if other != path)
        if not others:
            raise
        newest = max(others, key=lambda other: other.stat().st_mtime)
        raise WeightsError(
            f"{path}: is damaged ({path.stat().st_size:,} bytes), so the run cannot be resumed from it; resume from "
            f"another checkpoint of it, such as the newest: --resume {newest}"
        ) from error


def refuse_other_network(saved: SavedRun, model: IIANet) -> None:
    """Raise ConfigError if a checkpoint's weights do not fit the config's network."""
    built = {name: value.shape for name, value in model.state_dict().items()}
    names = sorted(saved.shapes.keys() | built.keys())
    differing = [name for name in names if saved.shapes.get(name) != built.get(name)]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"--resume {saved.path}: {counted(len(differing), 'tensor')} do not fit audionet.audionet_config, e.g. "
            f"{name} is {_shape(saved.shapes.get(name))} there and {_shape(built.get(name))} here; resume with the "
            "config that it was trained with (conf.yml beside it)"
        )


def refuse_other_order(saved: SavedRun, order: Mapping[str, Any]) -> None:
    """Raise ConfigError if a checkpoint's position stands for other examples than when it was saved.

    Args:
        saved: The run so far.
        order: Facts that now decide the order of the examples, by name. Equal facts give equal batches, whatever the
            number of workers or ranks, and from any store.
    """
    differing = _differing(saved.order, order)
    if differing:
        raise ConfigError(
            f"--resume {saved.path}: the examples would come in another order than it was trained in: "
            f"{_there_and_here(differing, saved.order, order)}. Resume with the config and the manifests that it was "
            "trained with (conf.yml beside it), or start a new run without --resume, from its weights with --init_from"
        )


def settings_of(config: Config) -> dict[str, str]:
    """The settings of a run's steps as JSON texts, by dotted key; see `SETTINGS`."""
    values = flattened(config.model_dump())
    return as_texts(
        {
            name: value
            for name, value in values.items()
            if any(name == key or name.startswith(f"{key}.") for key in SETTINGS)
        }
    )


def as_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as they are recorded: JSON texts, by dotted key."""
    return {name: json.dumps(value, sort_keys=True, default=str) for name, value in settings.items()}


def changed_settings(saved: Mapping[str, str], config: Config) -> list[str]:
    """Dotted keys of settings that are others now than in a checkpoint."""
    return _differing(saved, settings_of(config))


def tell_changed_settings(saved: SavedRun, config: Config) -> None:
    """Say which settings apply from now on instead of a checkpoint's.

    Raises:
        ConfigError: The state that the checkpoint holds of its optimizer does not belong to the config's.
    """
    changed, now = changed_settings(saved.settings, config), settings_of(config)
    if not changed:
        return
    named = _there_and_here(changed, saved.settings, now)
    if network := [name for name in changed if name.startswith("audionet.")]:  # its tensors may fit nevertheless
        raise ConfigError(
            f"--resume {saved.path}: {_there_and_here(network, saved.settings, now)}, which is another network. Resume "
            "with the config that it was trained with (conf.yml beside it), or start a new run without --resume"
        )
    unfit = [name for name in changed if name.startswith("optimizer.") and name not in APPLIED]
    if unfit:
        raise ConfigError(
            f"--resume {saved.path}: {_there_and_here(unfit, saved.settings, now)}; what the optimizer keeps of its "
            "steps belongs to the settings there, and only optimizer.lr and optimizer.weight_decay may change. Resume "
            "with those settings (conf.yml beside it), or start a new run without --resume, from its weights with "
            "--init_from"
        )
    logger.warning("--resume %s: %s; from step %d on, what is here applies", saved.path, named, saved.step)
    if "optimizer.lr" in changed:
        logger.warning("the learning rate is %g from here on, and its schedule starts anew", config.optimizer.lr)
    elif any(name.startswith("scheduler.") for name in changed):
        logger.warning("%s", _other_schedule(config.scheduler))


def _other_schedule(schedule: SchedulerSection) -> str:
    """What becomes of the learning rate where the schedule is another one now."""
    if schedule.sche_name is None:
        return "there is no schedule from here on: the learning rate stays at what the run had"
    if "max_lr" in schedule.sche_config:  # a cycle, which begins where its own arguments say
        return "the schedule starts anew, at the learning rates that it names"
    return "the schedule starts anew, from the learning rate that the run had"


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    missing = object()
    return [name for name in sorted(there.keys() | here.keys()) if there.get(name, missing) != here.get(name, missing)]


def _there_and_here(names: list[str], there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name} was {there.get(name, ABSENT)} there and is {here.get(name, ABSENT)} here" for name in names
    )


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))
