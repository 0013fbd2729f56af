"""Results in the folder of a training run, beside checkpoints and conf.yml."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from iianet.checkpoint import save_best_model
from iianet.separator.model import IIANet

BEST_MODEL_FILE = "best_model.pth"
BEST_K_FILE = "best_k_models.json"
CURVES_FILE = "loss_curves.png"


def save_results(
    folder: Path,
    model: IIANet,
    checkpoint: pl.callbacks.Checkpoint | None,
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write best_k_models.json, best_model.pth and the loss curves.

    Args:
        folder: Folder of the run.
        model: Separator that the best checkpoint's weights are loaded into.
        checkpoint: Callback that kept the best checkpoints.
        history: Figures of each epoch: epoch, train_loss, val_loss, lr.
    """
    assert isinstance(checkpoint, pl.callbacks.ModelCheckpoint)
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
