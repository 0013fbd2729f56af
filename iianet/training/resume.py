"""The checkpoint that a run resumes from, and checks that it fits the config."""

import logging
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from iianet.checkpoint import read_checkpoint
from iianet.errors import ConfigError
from iianet.separator.model import IIANet

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last.ckpt"
ABSENT = "not recorded"
OWN_ENTRIES = {"state_dict", "history", "separation_scheduler", "order"}
"""Entries that only SeparationModule's checkpoints have."""


def resolve_checkpoint(resume: str | None, folder: Path) -> Path | None:
    """Find the checkpoint to resume from: `last` of this experiment, or a path.

    Raises:
        ConfigError: There is no such checkpoint.
    """
    if resume is None:
        return None
    path = folder / LAST_CHECKPOINT if resume == "last" else Path(resume)
    if not path.is_file():
        found = ", ".join(sorted(other.name for other in path.parent.glob("*.ckpt"))) or "none"
        raise ConfigError(f"--resume {resume}: {path} does not exist; checkpoints there: {found}")
    missing = OWN_ENTRIES.difference(read_checkpoint(path))
    if missing:
        raise ConfigError(f"--resume {path}: not a checkpoint of train.py, it has no {', '.join(sorted(missing))}")
    return path


def refuse_other_network(resume: Path, model: IIANet) -> None:
    """Raise ConfigError if a checkpoint's weights do not fit the config's network."""
    prefix = "model."
    state = torch.load(resume, map_location="cpu", weights_only=True)["state_dict"]
    saved = {name.removeprefix(prefix): value.shape for name, value in state.items() if name.startswith(prefix)}
    built = {name: value.shape for name, value in model.state_dict().items()}
    differing = sorted(name for name in saved.keys() | built.keys() if saved.get(name) != built.get(name))
    if differing:
        name = differing[0]
        raise ConfigError(
            f"--resume {resume}: {len(differing)} tensors do not fit audionet.audionet_config, e.g. {name} is "
            f"{_shape(saved.get(name))} there and {_shape(built.get(name))} here; resume with the config that it was "
            "trained with (conf.yml beside it)"
        )


def refuse_other_order(resume: Path, order: Mapping[str, Any]) -> None:
    """Raise ConfigError if a checkpoint's position stands for other examples than when it was saved.

    Args:
        resume: The checkpoint.
        order: Facts that now decide the order of the examples, by name. Equal facts give equal batches, whatever the
            number of workers or ranks, and from any store.
    """
    saved = torch.load(resume, map_location="cpu", weights_only=True)["order"]
    differing = [name for name in sorted(saved.keys() | order.keys()) if saved.get(name) != order.get(name)]
    if differing:
        named = "; ".join(
            f"{name} was {saved.get(name, ABSENT)} there and is {order.get(name, ABSENT)} here" for name in differing
        )
        raise ConfigError(
            f"--resume {resume}: the examples would come in another order than it was trained in: {named}. Resume with "
            "the config and the manifests that it was trained with (conf.yml beside it), or start a new run without "
            "--resume"
        )


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))


def keep_earlier_run(folder: Path) -> None:
    """Move the results of an earlier run of the same name aside, so that a new one overwrites nothing."""
    if not (folder / LAST_CHECKPOINT).exists():
        return
    kept = folder.with_name(f"{folder.name}-before-{datetime.now():%Y%m%d-%H%M%S}")
    shutil.move(folder, kept)
    logger.warning("%s held an earlier run, now in %s. To resume that one: move it back, --resume last", folder, kept)
