"""A trained separator out of a file: a checkpoint of train.py, a best_model.pth of it, or a published one."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from iianet.checkpoint import (
    PUBLISHED_SEPARATORS,
    load_published,
    read_checkpoint,
    recorded_settings,
    separator_weights,
)
from iianet.config.key_paths import flattened
from iianet.config.schema import Config
from iianet.encoder.mouth import CROP_SIZE
from iianet.errors import ConfigError, WeightsError
from iianet.separator.model import IIANet

logger = logging.getLogger(__name__)

NETWORK_KEYS = "audionet.audionet_config."
"""How the keys of the network's arguments begin."""
NORMALIZE = "datamodule.data_config.normalize_audio"
INPUT = (NORMALIZE, "videonet.videonet_config.crop_rows")
"""Keys that say what the network was given to hear and see."""
LOSS = "loss.train.sdr_type"
SCALE_INVARIANT = "pairwise_neg_sisdr"
REFERENCE_ROWS = 50
"""Rows, from the top of the 88 that the encoder crops, that published separators were trained on: the reference cuts
mouths to as many frames as a segment has, and cuts their rows instead."""
CONF_FILE = "conf.yml"
"""Config that train.py, and the reference's, leave beside what they train."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained separator.

    Attributes:
        path: Path of its file.
        model: The separator, on the CPU, in evaluation mode.
        settings: What the file records of the config that it was trained with, by dotted key; of the reference's
            files nothing.
        step: Optimizer step of a checkpoint; None of a model file.
    """

    path: Path
    model: IIANet
    settings: Mapping[str, Any]
    step: int | None = None

    @property
    def is_of_reference(self) -> bool:
        """Whether another program than train.py wrote the file; the reference showed its encoder 50 of 88 rows."""
        return not self.settings

    @cached_property
    def digest(self) -> str:
        """sha256 of the file."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def open_trained(path: Path, config: Config | None = None, *, trains_on: bool = False) -> Trained:
    """Make the network of a file, from the arguments that it was trained with.

    The file tells them itself, by its record or by the shapes of its tensors; only the iterations of the reference's
    files, whose weights all of them share, are taken from the config, or else are the published 16.

    Args:
        path: Path of the file.
        config: Config that it is to be used with.
        trains_on: Whether it is trained further with the config: another input, to which it will adapt, is then a
            warning and no error.

    Raises:
        WeightsError: The file is missing, damaged, or holds no separator.
        ConfigError: The config contradicts the file.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weights file; expected a best_model.pth or checkpoint of train.py, or "
            f"{PUBLISHED_SEPARATORS}"
        )
    contents = read_checkpoint(path)
    settings = recorded_settings(contents)
    arguments = _arguments(settings) or _sizes(separator_weights(contents))
    if config is not None:
        _refuse_other(path, {f"{NETWORK_KEYS}{name}": value for name, value in arguments.items()}, config)
        given = {key: settings[key] for key in INPUT if key in settings}
        if trains_on:
            _warn_of_other(path, given, config)
        else:
            _refuse_other(path, given, config)
        arguments = config.audionet.audionet_config.model_dump()
    elif "num_blocks" not in arguments:
        logger.info("%s does not say how often its separator iterates; 16 times, as published", path)
    model = IIANet(**arguments)
    load_published(model, contents, path)
    step = contents.get("global_step")
    return Trained(path=path, model=model.eval(), settings=settings, step=step if isinstance(step, int) else None)


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the network among recorded settings."""
    return {key.removeprefix(NETWORK_KEYS): value for key, value in settings.items() if key.startswith(NETWORK_KEYS)}


def _sizes(weights: Mapping[str, object]) -> dict[str, Any]:
    """Arguments of the network that the shapes of its tensors tell; none where they are no separator's."""
    shapes = {name: tuple(value.shape) for name, value in weights.items() if isinstance(value, Tensor)}
    try:
        audio, video = "sm.audio_blocks.0", "sm.video_blocks.0"
        return {
            "out_channels": shapes["bottleneck.weight"][0],
            "in_channels": shapes[f"{audio}.proj_1x1.conv.weight"][0],
            "vpre_channels": shapes["pre_v.weight"][1],
            "vin_channels": shapes["pre_v.weight"][0],
            "vout_channels": shapes[f"{video}.proj_1x1.conv.weight"][0],
            "upsampling_depth": sum(f"{audio}.spp_dw.{scale}.conv.weight" in shapes for scale in range(len(shapes))),
            "enc_kernel_size": shapes["encoder.weight"][2] // 16,  # milliseconds at 16 kHz
            "num_sources": shapes["decoder.weight"][1],
        }
    except (IndexError, KeyError):
        return {}


def _refuse_other(path: Path, recorded: Mapping[str, Any], config: Config) -> None:
    """Raise ConfigError where a config says otherwise than the file was trained with."""
    for key, value, fact in _differences(path, recorded, config):
        raise ConfigError(
            f"{fact}; give the config that it was trained with ({CONF_FILE} beside it), or --set {key}={value}"
        )


def _warn_of_other(path: Path, recorded: Mapping[str, Any], config: Config) -> None:
    """Log where a config says otherwise than the file was trained with."""
    for _, _, fact in _differences(path, recorded, config):
        logger.warning("%s: training uses what the config says", fact)


def _differences(path: Path, recorded: Mapping[str, Any], config: Config) -> Iterator[tuple[str, str, str]]:
    """Keys that a config sets otherwise than the file was trained with: the key, the file's value, and the fact."""
    values = flattened(config.model_dump())
    for key, value in recorded.items():
        if values.get(key, value) != value:
            there, here = json.dumps(value), json.dumps(values[key])
            yield key, there, f"{path}: was trained with {key}={there}, and the config says {here}"


def refuse_not_finite(estimate: Tensor) -> None:
    """Raise WeightsError where an estimate is no sound: what is heard is finite, so the weights are not."""
    if not estimate.isfinite().all():
        raise WeightsError(
            "the separator's estimate has samples that are not finite, and its mixture has none; its weights diverged "
            "or are damaged: give another checkpoint"
        )


def warn_of_other_rows(trained: Trained, config: Config | None) -> None:
    """Warn where a published separator, which knows the upper part of mouths, is shown whole ones.

    Args:
        trained: Separator.
        config: Config whose encoder sees the mouths; None where embeddings are given, which were made of whole mouths.
    """
    rows = None if config is None else config.videonet.videonet_config.crop_rows
    if not trained.is_of_reference or rows == REFERENCE_ROWS:
        return
    cure = f"; give --set videonet.videonet_config.crop_rows={REFERENCE_ROWS}" if rows is not None else ""
    logger.warning(
        "%s: was not written by train.py, and published separators were trained on rows 0 to %d of the mouths' %d, but "
        "the encoder here sees %s: estimates may be worse than published%s",
        trained.path,
        REFERENCE_ROWS - 1,
        CROP_SIZE,
        "all of them" if rows is None else f"{rows} rows",
        cure,
    )


def warn_of_other_level(trained: Trained) -> None:
    """Warn where a separator was trained with a loss that leaves the level of its estimates open."""
    if trained.settings.get(LOSS) == SCALE_INVARIANT:
        logger.warning(
            "%s: was trained with %s=%s, which leaves the level of estimates open: it may change from window to window",
            trained.path,
            LOSS,
            SCALE_INVARIANT,
        )
