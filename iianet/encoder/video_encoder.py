"""The frozen lip encoder: mouth frames -> one 512-vector per frame.

A 3-D convolution that sees five frames, then a ResNet-18 trunk per frame (Martinez et al., ICASSP 2020, as
`ResNetVideoModel` in JusperLee/IIANet). About 0.31 GMAC a frame. It is frozen: always in eval mode, always without
gradients, so that its BatchNorm neither uses nor drifts with batch statistics.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

EMBEDDING_DIM = 512
"""Rows of an embedding."""
CONTEXT_FRAMES = 2
"""Frames that an output column sees to its left and to its right."""
STAGE_CHANNELS = (64, 128, 256, 512)
"""Channels of the four stages of the trunk."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and per-channel PReLU around a shortcut: one ResNet-18 basic block."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1: nn.Module = nn.BatchNorm2d(out_channels)
        self.act1 = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(out_channels)
        self.act2 = nn.PReLU(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, height, width)` -> `(batch, out_channels, height/stride, width/stride)`."""
        out = self.act1(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out = out + self.shortcut(x)
        result: Tensor = self.act2(out)
        return result


class VideoEncoder(nn.Module):
    """Frozen ResNet-18 lip encoder, as published. Weights are random until some are loaded
    (`iianet.checkpoint.load_published`). `iianet.encoder.clip_encoder` makes it fast."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = nn.Sequential(
            nn.Conv3d(1, 64, (5, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.PReLU(64),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        blocks: list[nn.Module] = []
        for in_channels, out_channels in pairwise((64, *STAGE_CHANNELS)):
            blocks.append(ResidualBlock(in_channels, out_channels, stride=1 if out_channels == 64 else 2))
            blocks.append(ResidualBlock(out_channels, out_channels, stride=1))
        self.trunk = nn.Sequential(*blocks)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "VideoEncoder":  # noqa: ARG002 (frozen: there is no other mode)
        """Stay in eval mode, whatever a parent module or a Trainer asks for."""
        return super().train(False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill with He-normal weights (fan out, as the reference initialises) from `seed`, the same on any device."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * math.sqrt(2.0 / fan_out))

    @torch.no_grad()
    def forward(self, mouths: Tensor) -> Tensor:
        """Encode clips of one length.

        Args:
            mouths: Normalised crops, `(batch, 1, frames, rows, 88)`.

        Returns:
            Embeddings, `(batch, 512, frames)`.
        """
        features = self.front_end(nn.functional.pad(mouths, (0, 0, 0, 0, CONTEXT_FRAMES, CONTEXT_FRAMES)))
        columns = [self.trunk(clip.transpose(0, 1)).mean(dim=(2, 3)) for clip in features]  # (frames, 512) each
        return torch.stack(columns).transpose(1, 2)
