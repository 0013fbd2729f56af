"""Results in the folder of a training run, beside checkpoints and conf.yml."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from iianet.checkpoint import load_published, read_checkpoint, save_best_model
from iianet.config.schema import Config
from iianet.drawing import drawing
from iianet.run_folder import replacing
from iianet.separator.model import IIANet
from iianet.training.resume import settings_of

BEST_MODEL_FILE = "best_model.pth"
BEST_K_FILE = "best_k_models.json"
CURVES_FILE = "loss_curves.png"
QUALITIES = {"pairwise_neg_snr": "SNR", "pairwise_neg_sisdr": "SI-SNR", "pairwise_neg_sdsdr": "SD-SDR"}
"""What each loss is the negative of, dB."""


def quality(config: Config, stage: str) -> str:
    """Name of what the loss of a stage, "train" or "val", is the negative of, dB."""
    section = config.loss.train if stage == "train" else config.loss.val
    return QUALITIES[section.sdr_type]


def save_results(folder: Path, model: IIANet, config: Config, scores: Mapping[str, float]) -> None:
    """Write best_model.pth and best_k_models.json; each is there whole or not at all.

    Args:
        folder: Folder of the run.
        model: Separator with the weights of the best checkpoint.
        config: Config that it was trained with.
        scores: Validation loss of each best checkpoint, by its name in the folder.

    Raises:
        TrainingError: A file cannot be written.
    """
    save_ranking(folder, scores)
    save_model(folder / BEST_MODEL_FILE, model, settings_of(config))


def save_model(path: Path, model: IIANet, settings: Mapping[str, str]) -> None:
    """Write a model file as `save_best_model` does, with the versions of this software.

    Args:
        path: File to write or replace.
        model: Trained separator.
        settings: What it was trained with, see `settings_of`.

    Raises:
        TrainingError: The file cannot be written.
    """
    versions = {"torch_version": torch.__version__, "pytorch_lightning_version": version("pytorch_lightning")}
    save_best_model(path, model, versions, settings)


def save_ranking(folder: Path, scores: Mapping[str, float]) -> None:
    """Write best_k_models.json: validation loss of each best checkpoint, by its name in the folder."""
    with replacing(folder / BEST_K_FILE) as stream:
        stream.write(json.dumps(scores, indent=0).encode())


def load_best(folder: Path, name: str, model: IIANet) -> None:
    """Load the separator's weights from a checkpoint in the folder. Raises WeightsError where it is damaged or gone."""
    load_published(model, read_checkpoint(folder / name), folder / name)


def save_curves(folder: Path, history: Sequence[Mapping[str, float]], config: Config) -> None:
    """Draw the loss curves of a run whose epochs have such figures: epoch, train_loss, val_loss, lr; some test_loss.

    Raises:
        TrainingError: The picture cannot be written.
    """
    if not history:
        return
    plot_curves(folder / CURVES_FILE, history, quality(config, "train"), quality(config, "val"))


def plot_curves(path: Path, history: Sequence[Mapping[str, float]], training: str, validation: str) -> None:
    """Draw the losses over the epochs, dB, and the learning rate below. Losses of two kinds have an axis each.

    Args:
        path: Picture to write.
        history: Figures of each epoch.
        training: What the training loss is the negative of.
        validation: What the losses of validation and test are the negative of.
    """
    epochs = [row["epoch"] for row in history]
    names = [("train_loss", "training", training), ("val_loss", "validation", validation)]
    if any("test_loss" in row for row in history):
        names.append(("test_loss", "test", validation))
    kinds = list(dict.fromkeys(kind for _, _, kind in names))
    with drawing(figsize=(7, 3 + 2 * len(kinds))) as figure:
        *losses, rate = figure.subplots(len(kinds) + 1, 1, sharex=True, height_ratios=[*[4] * len(kinds), 1])
        for loss, kind in zip(losses, kinds, strict=True):
            for number, (name, label, own) in enumerate(names):
                if own == kind:
                    points = [(row["epoch"], row[name]) for row in history if name in row]
                    loss.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, color=f"C{number}")
            loss.set_ylabel(f"negative {kind} (dB)")
            loss.legend(frameon=False)
        rate.step(epochs, [row["lr"] for row in history], where="mid")
        rate.set_ylabel("learning rate")
        rate.set_xlabel("epoch")
        rate.set_yscale("log" if all(row["lr"] > 0 for row in history) else "linear")
        rate.xaxis.get_major_locator().set_params(integer=True)
        with replacing(path) as stream:
            figure.savefig(stream, dpi=150, format="png")
