"""Encoders made of a `LipNetwork`: folded, packed along time, with settings for their device.

A subclass says which network and which files; all else is here.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from iianet.checkpoint import PublishedForm, load_published, read_checkpoint
from iianet.encoder.fingerprint import weights_fingerprint
from iianet.encoder.folding import FrontEnd, fold_batch_norms
from iianet.encoder.kernels import DTYPES, MEMORY_FORMATS, Kernels, exact_kernels
from iianet.encoder.lip_network import CONTEXT_FRAMES, LipNetwork
from iianet.encoder.mouth import CROP_SIZE, FPS, FRAME_SIZE, MEAN, STD, normalise
from iianet.encoder.packing import FEWEST, encode_clips, packed_windows


class LipEncoder(nn.Module, ABC):
    """What such encoders share; each of them is an `iianet.encoder.protocol.Encoder`.

    Attributes:
        fewest_frames: Smallest number of frames in one call of the trunk; see `FEWEST`.
        form: How published files hold the network's weights.
    """

    name: ClassVar[str]
    dim: ClassVar[int]
    fps: ClassVar[int] = FPS
    context_frames: ClassVar[int] = CONTEXT_FRAMES
    fewest_rows: ClassVar[int]
    fewest_frames: ClassVar[int] = FEWEST
    preprocessing: ClassVar[Mapping[str, Any]] = {
        "frame_size": FRAME_SIZE,
        "crop": "center",
        "crop_size": CROP_SIZE,
        "mean": MEAN,
        "std": STD,
    }
    published: ClassVar[str]
    form: ClassVar[PublishedForm]

    def __init__(self, network: LipNetwork, kernels: Kernels, crop_rows: int = CROP_SIZE) -> None:
        """Make it of a network with its weights, which is copied, and stays as it is."""
        super().__init__()
        self.kernels = kernels
        self.crop_rows = crop_rows
        self.fingerprint = weights_fingerprint(network)
        network = copy.deepcopy(network)
        self.front_end = FrontEnd(network.front_end, kernels.memory_format)
        fold_batch_norms(network.trunk)
        self.trunk = network.trunk
        self.requires_grad_(False)
        self.to(DTYPES[kernels.dtype])
        self.to(memory_format=MEMORY_FORMATS[kernels.memory_format])  # type: ignore[call-overload]
        self.train(False)

    @classmethod
    @abstractmethod
    def make_network(cls) -> LipNetwork:
        """The network without weights."""

    @classmethod
    def load_network(cls, pretrain: Path | None, seed: int) -> LipNetwork:
        """The network on the CPU, with the weights of a file, or random ones where it is None.

        Raises:
            WeightsError: The file is missing, damaged, or does not fit.
        """
        network = cls.make_network()
        if pretrain is None:
            network.init_weights(seed)
        else:
            load_published(network, read_checkpoint(pretrain), pretrain, cls.form)
        return network

    @classmethod
    def load(cls, pretrain: Path | None, seed: int, kernels: Kernels, crop_rows: int = CROP_SIZE) -> Self:
        """Make it of a published file, or of random weights."""
        return cls(cls.load_network(pretrain, seed), kernels, crop_rows)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 (frozen: there is no other mode)
        """Stay in eval mode, whatever a parent module or a Trainer asks for."""
        return super().train(False)

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Clips of `(frames, 88, 88)`, uint8 -> embeddings of `(dim, frames)`, float32."""
        return encode_clips(self.columns, clips)

    @torch.no_grad()
    def columns(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Clips one after the other, `(sum of lengths, 88, 88)`, uint8 -> `(sum of lengths, dim)`, float32."""
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
                features = self.front_end(window.to(DTYPES[self.kernels.dtype]))  # (positions, channels, rows / 4, 22)
                columns.append(self._trunk_columns(features[places]))
        return torch.cat(columns)

    def _trunk_columns(self, features: Tensor) -> Tensor:
        """`(frames, channels, height, width)` -> `(frames, dim)`, float32."""
        count = len(features)
        if 0 < count < self.fewest_frames:
            features = features.repeat(-(-self.fewest_frames // count), 1, 1, 1)
        columns: Tensor = self.trunk(features)[:count].float().mean(dim=(2, 3))
        return columns
