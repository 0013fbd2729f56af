"""The lip encoder ready for use: the published ResNet-18, folded, packed along time, with settings for its device."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from iianet.checkpoint import load_published, read_checkpoint
from iianet.encoder.fingerprint import weights_fingerprint
from iianet.encoder.folding import FrontEnd, fold_batch_norms
from iianet.encoder.kernels import DTYPES, MEMORY_FORMATS, Kernels, exact_kernels
from iianet.encoder.mouth import CROP_SIZE, FPS, FRAME_SIZE, MEAN, STD, normalise
from iianet.encoder.packing import FEWEST, encode_clips, packed_windows
from iianet.encoder.video_encoder import CONTEXT_FRAMES, EMBEDDING_DIM, VideoEncoder


class ClipEncoder(nn.Module):
    """The lip encoder of IIANet, an `iianet.encoder.protocol.Encoder`.

    Args:
        encoder: Network with its weights. It is copied, and stays as it is.
        kernels: Settings to compute with.
        crop_rows: Rows of a crop that the network sees, from the top.
    """

    name: ClassVar[str] = "ResNetVideoModel"
    dim: ClassVar[int] = EMBEDDING_DIM
    fps: ClassVar[int] = FPS
    context_frames: ClassVar[int] = CONTEXT_FRAMES
    fewest_rows: ClassVar[int] = 1
    """Every layer pads, so even one row leaves one to take the average of."""
    preprocessing: ClassVar[Mapping[str, Any]] = {
        "frame_size": FRAME_SIZE,
        "crop": "center",
        "crop_size": CROP_SIZE,
        "mean": MEAN,
        "std": STD,
    }
    published: ClassVar[str] = (
        "lrw_resnet18_mstcn_adamw_s3.pth.tar, the model resnet18_mstcn(adamw_s3) in the Model Zoo of "
        "https://github.com/mpc001/Lipreading_using_Temporal_Convolutional_Networks"
    )

    def __init__(self, encoder: VideoEncoder, kernels: Kernels, crop_rows: int = CROP_SIZE) -> None:
        super().__init__()
        self.kernels = kernels
        self.crop_rows = crop_rows
        self.fingerprint = weights_fingerprint(encoder)
        network = copy.deepcopy(encoder)
        self.front_end = FrontEnd(network.front_end, kernels.memory_format)
        fold_batch_norms(network.trunk)
        self.trunk = network.trunk
        self.requires_grad_(False)
        self.to(DTYPES[kernels.dtype])
        self.to(memory_format=MEMORY_FORMATS[kernels.memory_format])  # type: ignore[call-overload]
        self.train(False)

    @classmethod
    def load(cls, pretrain: Path | None, seed: int, kernels: Kernels, crop_rows: int = CROP_SIZE) -> Self:
        """Make it of a published file, or of random weights."""
        return cls(load_network(pretrain, seed), kernels, crop_rows)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 (frozen: there is no other mode)
        """Stay in eval mode, whatever a parent module or a Trainer asks for."""
        return super().train(False)

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Clips of `(frames, 88, 88)`, uint8 -> embeddings of `(512, frames)`, float32."""
        return encode_clips(self.columns, clips)

    @torch.no_grad()
    def columns(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Clips one after the other, `(sum of lengths, 88, 88)`, uint8 -> `(sum of lengths, 512)`, float32."""
        windows = packed_windows(
            frames[:, : self.crop_rows],
            lengths,
            context_frames=CONTEXT_FRAMES,
            max_frames=self.kernels.max_frames,
            prepare=normalise,
        )
        columns = []
        with exact_kernels(frames.device):
            for window, places in windows:
                features = self.front_end(window.to(DTYPES[self.kernels.dtype]))  # (positions, 64, 22, 22) of 88 rows
                columns.append(self._trunk_columns(features[places]))
        return torch.cat(columns)

    def _trunk_columns(self, features: Tensor) -> Tensor:
        """`(frames, 64, height, width)` -> `(frames, 512)`, float32."""
        count = len(features)
        if count < FEWEST:
            features = features.repeat(FEWEST, 1, 1, 1)
        columns: Tensor = self.trunk(features)[:count].float().mean(dim=(2, 3))
        return columns


def load_network(pretrain: Path | None, seed: int) -> VideoEncoder:
    """The network as published, on the CPU, with the weights of a file, or random ones where it is None.

    Raises:
        WeightsError: The file is missing, damaged, or does not fit.
    """
    network = VideoEncoder()
    if pretrain is None:
        network.init_weights(seed)
    else:
        load_published(network, read_checkpoint(pretrain), source=pretrain)
    return network
