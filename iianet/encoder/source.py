"""Where the frozen encoder comes from, its class and its weights; and whether a store was made with the same."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.kernels import Kernels, default_kernels
from iianet.encoder.mouth import CROP_ROWS, CROP_SIZE, SAMPLE_RATE
from iianet.encoder.protocol import Encoder
from iianet.encoder.registry import encoder_class
from iianet.errors import WeightsError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderSource:
    """An encoder by name, with a published weights file or a seed for random weights.

    It holds plain values, so that it can be sent to another process, and it costs nothing: no weights are loaded.

    Attributes:
        pretrain: File with published weights; None for random ones.
        seed: Seed of the random weights.
        precision: Arithmetic of the encoder, float32 or bf16; None is the store's, or float32 without a store.
        name: Name of the encoder in the registry.
        memory_format: Layout of features, contiguous or channels_last; None is the default of the device.
        max_frames: Frames encoded at a time; None is the default of the device.
        crop_rows: Rows of a crop that the encoder sees, from the top.
    """

    pretrain: Path | None
    seed: int
    precision: str | None = None
    name: str = field(default=ClipEncoder.name, kw_only=True)
    memory_format: str | None = field(default=None, kw_only=True)
    max_frames: int | None = field(default=None, kw_only=True)
    crop_rows: int = field(default=CROP_SIZE, kw_only=True)

    @property
    def is_absent(self) -> bool:
        """Whether the weights file does not exist: what is stored can be read, and nothing encoded."""
        return self.pretrain is not None and not self.pretrain.is_file()

    def require_weights(self, needed_for: str = "") -> None:
        """Raise WeightsError where the weights file does not exist; `needed_for` says what it would encode."""
        if self.is_absent:
            reason = f", which is needed for {needed_for}" if needed_for else ""
            raise WeightsError(
                f"{self.pretrain}: no such weights file (videonet.videonet_config.pretrain){reason}. Download "
                f"{encoder_class(self.name).published}, or give --set videonet.videonet_config.pretrain=PATH; null "
                "means random weights, for trials only."
            )

    @property
    def dim(self) -> int:
        """Rows of an embedding."""
        return encoder_class(self.name).dim

    @property
    def fps(self) -> int:
        """Mouth frames, and so embedding columns, per second."""
        return encoder_class(self.name).fps

    @property
    def samples_per_frame(self) -> int:
        """Audio samples that one mouth frame spans, at 16 kHz: frame i shows samples n i to n (i + 1)."""
        return SAMPLE_RATE // self.fps

    @property
    def context_frames(self) -> int:
        """Frames that a column sees on each side of its own."""
        return encoder_class(self.name).context_frames

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What happens to frames before the first layer, as the identity of stores records it.

        Of whole crops it does not mention rows: stores were made of those before there was a choice.
        """
        preprocessing = encoder_class(self.name).preprocessing
        return preprocessing if self.crop_rows == CROP_SIZE else {**preprocessing, CROP_ROWS: self.crop_rows}

    @cached_property
    def digest(self) -> str | None:
        """sha256 of the weights file; None without one."""
        if self.pretrain is None:
            return None
        with self.pretrain.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def kernels(self, device: torch.device) -> Kernels:
        """Settings where no store gives its own: those of the config, else the default of the device."""
        default = default_kernels(device, self.precision)
        return replace(
            default,
            memory_format=self.memory_format or default.memory_format,
            max_frames=self.max_frames or default.max_frames,
        )

    def load(self, device: torch.device, kernels: Kernels | None = None) -> Encoder:
        """The encoder on a device, with given kernels, or with those of `kernels`.

        Raises:
            WeightsError: The weights file is missing, damaged, or holds the weights of something else.
        """
        self._warn_of_random_weights()
        kernels = kernels or self.kernels(device)
        with torch.random.fork_rng(devices=[]):  # loading it in the middle of training must not move other draws
            encoder = encoder_class(self.name).load(self.pretrain, self.seed, kernels, self.crop_rows)
        return encoder.to(device)

    def facts(self, fingerprint: str) -> dict[str, Any]:
        """What a store's identity says of the encoder."""
        origin = (
            {"pretrain": None, "seed": self.seed}
            if self.pretrain is None
            else {"pretrain": self.pretrain.name, "pretrain_digest": self.digest}
        )
        return {"name": self.name, "fingerprint": fingerprint, **origin}

    def made(self, recorded: Mapping[str, Any]) -> bool:
        """Whether a store's encoder plainly is this one: same name, and same file or seed. No weights are loaded."""
        if recorded.get("name") != self.name:
            return False
        if self.pretrain is None:
            return recorded.get("pretrain", "") is None and recorded.get("seed") == self.seed
        return recorded.get("pretrain_digest") == self.digest

    def _warn_of_random_weights(self) -> None:
        if self.pretrain is None:
            logger.warning(
                "videonet.videonet_config.pretrain is null: the encoder %s has RANDOM weights from seed %d. Good for "
                "trying things out; for real training give the published weights.",
                self.name,
                self.seed,
            )
