"""What a training run leaves in its folder, beside checkpoints and conf.yml."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from configs.errors import ConfigError
from iianet.checkpoint import read_checkpoint, save_best_model
from iianet.model import IIANet

logger = logging.getLogger(__name__)

BEST_MODEL_FILE = "best_model.pth"
BEST_K_FILE = "best_k_models.json"
CURVES_FILE = "loss_curves.png"
LAST_CHECKPOINT = "last.ckpt"


def resolve_checkpoint(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint to go on from: `last` of this experiment, or a path.

    Raises:
        ConfigError: There is none.
    """
    if resume is None:
        return None
    path = folder / LAST_CHECKPOINT if resume == "last" else Path(resume)
    if not path.is_file():
        found = ", ".join(sorted(other.name for other in path.parent.glob("*.ckpt"))) or "none"
        raise ConfigError(f"--resume {resume}: {path} does not exist; checkpoints there: {found}")
    missing = {"state_dict", "history", "separation_scheduler"}.difference(read_checkpoint(path))
    if missing:
        raise ConfigError(f"--resume {path}: not a checkpoint of train.py, it has no {', '.join(sorted(missing))}")
    return path


def refuse_other_network(resume: Path, model: IIANet) -> None:
    """Raise ConfigError where a checkpoint's weights do not fit the config's network."""
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


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))


def keep_earlier_run(folder: Path) -> None:
    """Move the results of an earlier run of the same name aside, so that a new one overwrites nothing."""
    if not (folder / LAST_CHECKPOINT).exists():
        return
    kept = folder.with_name(f"{folder.name}-before-{datetime.now():%Y%m%d-%H%M%S}")
    shutil.move(folder, kept)
    logger.warning("%s holds an earlier run; it is now %s. To go on with it instead: --resume last", folder, kept)


def save_results(
    folder: Path,
    model: IIANet,
    checkpoint: pl.callbacks.ModelCheckpoint,
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write best_k_models.json, best_model.pth and the loss curves.

    Args:
        folder: Of the run.
        model: Takes the best checkpoint's weights.
        checkpoint: Knows the best checkpoints.
        history: Per epoch: epoch, train_loss, val_loss, lr.
    """
    best = {path: float(score) for path, score in checkpoint.best_k_models.items()}
    (folder / BEST_K_FILE).write_text(json.dumps(best, indent=0), encoding="utf-8")
    if checkpoint.best_model_path:
        state = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "model."
        model.load_state_dict({key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
        versions = {"torch_version": torch.__version__, "pytorch_lightning_version": version("pytorch_lightning")}
        save_best_model(folder / BEST_MODEL_FILE, model, versions)
    if history:
        plot_curves(folder / CURVES_FILE, history)


def plot_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draw training and validation loss over the epochs, dB, and the learning rate below."""
    epochs = [row["epoch"] for row in history]
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 5), layout="constrained")
        loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        for name, label in (("train_loss", "training"), ("val_loss", "validation")):
            loss.plot(epochs, [row[name] for row in history], marker="o", markersize=3, label=label)
        loss.set_ylabel("loss (dB)")
        loss.legend(frameon=False)
        rate.step(epochs, [row["lr"] for row in history], where="mid")
        rate.set_ylabel("learning rate")
        rate.set_xlabel("epoch")
        rate.set_yscale("log" if all(row["lr"] > 0 for row in history) else "linear")
        rate.xaxis.get_major_locator().set_params(integer=True)
        figure.savefig(path, dpi=150)
