"""The layers of a lip network in forms that compute the same with less work."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from iianet.encoder.kernels import MEMORY_FORMATS

Convolution = TypeVar("Convolution", nn.Conv2d, nn.Conv3d)


class FrontEnd(nn.Module):
    """The front end as a 2-D convolution, which takes the five frames of its window for channels.

    That is the same sum as the 3-D convolution's, and kernels for it are better.

    Args:
        front_end: That of a `LipNetwork`: Conv3d, BatchNorm3d, PReLU, MaxPool3d.
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
        """`(frames + 4, rows, 88)` -> `(frames, channels, rows / 4, 22)`, a part of a row for a whole one."""
        stacked = window.unfold(0, self.frames, 1).permute(0, 3, 1, 2)  # (frames, 5, rows, 88), overlapping
        stacked = stacked.contiguous(memory_format=self.memory_format)
        result: Tensor = self.pool(self.activation(self.convolution(stacked)))
        return result


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every BatchNorm of a trunk into the convolution before it, in place.

    Both are children of one module, one directly after the other, as they are computed.
    """
    before, convolution = "", nn.Module()
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm):
            assert isinstance(convolution, nn.Conv2d), f"{name} follows no convolution"
            setattr(module, before, _folded(convolution, child))
            setattr(module, name, nn.Identity())
        else:
            fold_batch_norms(child)
        before, convolution = name, child


@torch.no_grad()
def _folded(convolution: Convolution, norm: nn.Module) -> Convolution:
    """One convolution for both; worked out in float64, so that it rounds once."""
    assert isinstance(norm, _BatchNorm)
    return fuse_conv_bn_eval(convolution.double(), norm.double()).float()
