"""Where the frozen encoder's weights come from, and how to tell whether a store was made with the same."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from iianet.config.schema import Config
from iianet.encoder.clip_encoder import ClipEncoder, load_network
from iianet.encoder.kernels import Kernels, default_kernels
from iianet.encoder.protocol import Encoder
from iianet.encoder.video_encoder import VideoEncoder
from iianet.errors import WeightsError

logger = logging.getLogger(__name__)

ENCODER_NAME = ClipEncoder.name
PREPROCESSING: Mapping[str, Any] = ClipEncoder.preprocessing


@dataclass(frozen=True)
class EncoderSource:
    """A published weights file, or a seed for random weights.

    Attributes:
        pretrain: File with published weights; None for random ones.
        seed: Of the random ones.
        precision: Of the encoder's arithmetic, float32 or bf16; None is the store's, or float32.
    """

    pretrain: Path | None
    seed: int
    precision: str | None = None

    @classmethod
    def from_config(cls, config: Config) -> "EncoderSource":
        """As the config's videonet section says.

        Raises:
            WeightsError: The weights file does not exist.
        """
        videonet = config.videonet.videonet_config
        pretrain = Path(videonet.pretrain) if videonet.pretrain is not None else None
        source = cls(pretrain, videonet.seed, videonet.precision)
        if source.pretrain is not None and not source.pretrain.is_file():
            raise WeightsError(
                f"{source.pretrain}: no such weights file (videonet.videonet_config.pretrain). Download the lip "
                "reading weights that IIANet's README links to, or give --set videonet.videonet_config.pretrain=PATH; "
                "null means random weights, for trials only."
            )
        return source

    @cached_property
    def digest(self) -> str | None:
        """sha256 of the weights file."""
        if self.pretrain is None:
            return None
        with self.pretrain.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def load(self, device: torch.device, kernels: Kernels | None = None) -> Encoder:
        """The encoder, on its device, with the default kernels for it or others."""
        self._warn_of_random_weights()
        with torch.random.fork_rng(devices=[]):  # loading it in the middle of training must not move other draws
            encoder = ClipEncoder.load(self.pretrain, self.seed, kernels or default_kernels(device, self.precision))
        return encoder.to(device)

    def network(self) -> VideoEncoder:
        """The encoder as published, on the CPU."""
        self._warn_of_random_weights()
        return load_network(self.pretrain, self.seed)

    def _warn_of_random_weights(self) -> None:
        if self.pretrain is None:
            logger.warning(
                "videonet.videonet_config.pretrain is null: the lip encoder has RANDOM weights from seed %d. Good "
                "for trying things out; for real training give the published weights.",
                self.seed,
            )

    def facts(self, fingerprint: str) -> dict[str, Any]:
        """What a store's identity says of the encoder."""
        origin = (
            {"pretrain": None, "seed": self.seed}
            if self.pretrain is None
            else {"pretrain": self.pretrain.name, "pretrain_digest": self.digest}
        )
        return {"name": ENCODER_NAME, "fingerprint": fingerprint, **origin}

    def made(self, recorded: Mapping[str, Any]) -> bool:
        """Whether a store's encoder plainly is this one: same file, or same seed. No weights are loaded for it."""
        if self.pretrain is None:
            return recorded.get("pretrain", "") is None and recorded.get("seed") == self.seed
        return recorded.get("pretrain_digest") == self.digest
