"""What IIANet's blocks are made of: convolution with global layer norm, feed-forward, drop path, resizing along time.

Source: JusperLee/IIANet. Axes everywhere: `(batch, channels, columns)`; a column is one position in time, of either the
audio or the video path, at one of the scales.
"""

import torch
from torch import Tensor, nn

EPS = 1e-8
DROP_RATE = 0.1
"""Rate of dropout and of drop path, in the fusion blocks only."""


class GlobalLayerNorm(nn.GroupNorm):
    """Normalise an item over all its channels and columns, then scale and shift each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, eps=EPS)


class ChannelScale(nn.Conv1d):
    """A depthwise convolution of one column.

    On CPUs it is computed as the product that it is, which takes a third of the time; elsewhere it stays a convolution,
    which takes half the launches.
    """

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__(channels, channels, 1, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, columns)` -> the same shape."""
        if not _multiplies(x):
            return super().forward(x)
        scaled = x * self.weight.view(1, -1, 1)
        return scaled if self.bias is None else scaled + self.bias.view(1, -1, 1)


def _multiplies(x: Tensor) -> bool:
    return x.device.type == "cpu"


class ConvNorm(nn.Module):
    """Convolution along time, then global layer norm; at stride 1 an odd kernel keeps the number of columns.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Columns seen by one output column, odd.
        stride: Columns moved per output column.
        groups: `in_channels` makes it depthwise.
        bias: Whether the convolution has one.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        if kernel_size == stride == 1 and groups == in_channels == out_channels:
            self.conv: nn.Conv1d = ChannelScale(in_channels, bias)
        else:
            self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.norm = GlobalLayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, columns)` -> `(batch, out_channels, ceil(columns / stride))`."""
        normalised: Tensor = self.norm(self.conv(x))
        return normalised


class FeedForward(nn.Module):
    """Widen to twice the channels, mix five columns depthwise, and narrow again, with dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.widen = ConvNorm(channels, hidden, 1, bias=False)
        self.depthwise = nn.Conv1d(hidden, hidden, 5, padding=2, groups=hidden)
        self.narrow = ConvNorm(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, columns)` -> the same shape."""
        hidden = self._drop(torch.relu(self.depthwise(self.widen(x))))  # (batch, 2 * channels, columns)
        return self._drop(self.narrow(hidden))  # (batch, channels, columns)

    def _drop(self, x: Tensor) -> Tensor:
        return torch.native_dropout(x, DROP_RATE, True)[0] if self.training else x


def drop_paths(branches: int, batch: int, like: Tensor) -> Tensor:
    """Draw which residual branches are left out, for whole items of the batch at a time.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.

    Args:
        branches: How many there are.
        batch: Items of the batch.
        like: A tensor of the device and dtype wanted.

    Returns:
        Factor of each branch and item: 0, or what makes up for those left out, `(branches, batch, 1, 1)`.
    """
    return nn.functional.dropout(like.new_ones(branches, batch, 1, 1), DROP_RATE)
