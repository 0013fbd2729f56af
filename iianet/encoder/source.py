"""Where the frozen encoder's weights come from, and how to tell whether a store was made with the same."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from iianet.checkpoint import load_published, read_checkpoint
from iianet.config.schema import Config
from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.kernels import Kernels, default_kernels
from iianet.encoder.mouth import CROP_SIZE, FRAME_SIZE, MEAN, STD
from iianet.encoder.video_encoder import VideoEncoder
from iianet.errors import WeightsError

logger = logging.getLogger(__name__)

ENCODER_NAME = "ResNetVideoModel"
WEIGHTS = (
    "lrw_resnet18_mstcn_adamw_s3.pth.tar, the model resnet18_mstcn(adamw_s3) in the Model Zoo of the GitHub repository "
    "mpc001/Lipreading_using_Temporal_Convolutional_Networks (for non-commercial use)"
)
"""The published weights file, and where it is found."""

PREPROCESSING: Mapping[str, Any] = {
    "frame_size": FRAME_SIZE,
    "crop": "center",
    "crop_size": CROP_SIZE,
    "mean": MEAN,
    "std": STD,
}


@dataclass(frozen=True)
class EncoderSource:
    """A published weights file, or a seed for random weights.

    Attributes:
        pretrain: File with published weights; None for random ones.
        seed: Seed of the random weights.
        precision: Arithmetic of the encoder, float32 or bf16; None uses the store's, or float32.
    """

    pretrain: Path | None
    seed: int
    precision: str | None = None

    @classmethod
    def from_config(cls, config: Config) -> "EncoderSource":
        """Take weights and precision from the config's videonet section.

        Raises:
            WeightsError: The weights file does not exist.
        """
        videonet = config.videonet.videonet_config
        pretrain = Path(videonet.pretrain) if videonet.pretrain is not None else None
        source = cls(pretrain, videonet.seed, videonet.precision)
        if source.pretrain is not None and not source.pretrain.is_file():
            raise WeightsError(
                f"{source.pretrain}: no such weights file (videonet.videonet_config.pretrain). Download {WEIGHTS}, "
                "or give --set videonet.videonet_config.pretrain=PATH; null means random weights, for trials only."
            )
        return source

    @cached_property
    def digest(self) -> str | None:
        """sha256 of the weights file."""
        if self.pretrain is None:
            return None
        with self.pretrain.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def load(self, device: torch.device, kernels: Kernels | None = None) -> ClipEncoder:
        """The encoder, on its device, with the default kernels for it or others."""
        with torch.random.fork_rng(devices=[]):  # loading it during training must not change other random numbers
            encoder = ClipEncoder(self.network(), kernels or default_kernels(device, self.precision))
        return encoder.to(device)

    def network(self) -> VideoEncoder:
        """The encoder as published, on the CPU."""
        encoder = VideoEncoder()
        if self.pretrain is None:
            logger.warning(
                "videonet.videonet_config.pretrain is null: the lip encoder has RANDOM weights from seed %d. Good "
                "for trying things out; for real training give the published weights.",
                self.seed,
            )
            encoder.init_weights(self.seed)
        else:
            load_published(encoder, read_checkpoint(self.pretrain), source=self.pretrain)
        return encoder

    def facts(self, fingerprint: str) -> dict[str, Any]:
        """Facts about the encoder for a store's identity."""
        origin = (
            {"pretrain": None, "seed": self.seed}
            if self.pretrain is None
            else {"pretrain": self.pretrain.name, "pretrain_digest": self.digest}
        )
        return {"name": ENCODER_NAME, "fingerprint": fingerprint, **origin}

    def made(self, recorded: Mapping[str, Any]) -> bool:
        """Whether a store's encoder is this one: same file, or same seed. No weights are loaded for this check."""
        if self.pretrain is None:
            return recorded.get("pretrain", "") is None and recorded.get("seed") == self.seed
        return recorded.get("pretrain_digest") == self.digest
