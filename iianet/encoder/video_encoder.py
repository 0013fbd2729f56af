"""The network of IIANet's lip encoder: mouth frames -> one 512-vector per frame.

A front end that sees five frames, then a ResNet-18 trunk per frame (Martinez et al., ICASSP 2020, as
`ResNetVideoModel` in JusperLee/IIANet). About 0.31 GMAC a frame.
"""

from itertools import pairwise

from torch import Tensor, nn

from iianet.encoder.lip_network import LipNetwork

EMBEDDING_DIM = 512
"""Rows of an embedding."""
STAGE_CHANNELS = (64, 128, 256, 512)
"""Channels of the four stages of the trunk."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and per-channel PReLU around a shortcut: one ResNet-18 basic block."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
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


class VideoEncoder(LipNetwork):
    """The lip network as published."""

    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        for in_channels, out_channels in pairwise((64, *STAGE_CHANNELS)):
            blocks.append(ResidualBlock(in_channels, out_channels, stride=1 if out_channels == 64 else 2))
            blocks.append(ResidualBlock(out_channels, out_channels, stride=1))
        super().__init__(64, nn.Sequential(*blocks))
