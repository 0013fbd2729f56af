"""The lip encoder's layers in forms that compute the same with less work."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from iianet.encoder.kernels import MEMORY_FORMATS
from iianet.encoder.video_encoder import ResidualBlock

Convolution = TypeVar("Convolution", nn.Conv2d, nn.Conv3d)


class FrontEnd(nn.Module):
    """The front end as a 2-D convolution, which takes the five frames of its window for channels.

    That is the same sum as the 3-D convolution's, and kernels for it are better.

    Args:
        front_end: Conv3d 1 -> 64 of (5, 7, 7), BatchNorm3d, PReLU, MaxPool3d.
        memory_format: contiguous or channels_last.
    """

    def __init__(self, front_end: nn.Sequential, memory_format: str) -> None:
        super().__init__()
        self.memory_format = MEMORY_FORMATS[memory_format]
        assert isinstance(front_end[0], nn.Conv3d)
        convolution = _folded(front_end[0], front_end[1])
        self.frames, height, width = convolution.kernel_size
        self.convolution = nn.Conv2d(self.frames, convolution.out_channels, (height, width), stride=2, padding=3)
        self.convolution.load_state_dict({"weight": convolution.weight[:, 0], "bias": convolution.bias})
        self.activation = front_end[2]
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, window: Tensor) -> Tensor:
        """`(frames + 4, rows, 88)` -> `(frames, 64, rows / 4, 22)`, a part of a row for a whole one."""
        stacked = window.unfold(0, self.frames, 1).permute(0, 3, 1, 2)  # (frames, 5, rows, 88), overlapping
        stacked = stacked.contiguous(memory_format=self.memory_format)
        result: Tensor = self.pool(self.activation(self.convolution(stacked)))
        return result


def fold_batch_norms(trunk: nn.Sequential) -> None:
    """Fold every BatchNorm of some residual blocks into the convolution before it, in place."""
    for block in trunk:
        assert isinstance(block, ResidualBlock)
        block.conv1, block.norm1 = _folded(block.conv1, block.norm1), nn.Identity()
        block.conv2, block.norm2 = _folded(block.conv2, block.norm2), nn.Identity()
        if isinstance(block.shortcut, nn.Sequential):
            convolution, norm = block.shortcut
            assert isinstance(convolution, nn.Conv2d)
            block.shortcut = _folded(convolution, norm)


@torch.no_grad()
def _folded(convolution: Convolution, norm: nn.Module) -> Convolution:
    """One convolution for both; worked out in float64, so that it rounds once."""
    assert isinstance(norm, _BatchNorm)
    return fuse_conv_bn_eval(convolution.double(), norm.double()).float()
