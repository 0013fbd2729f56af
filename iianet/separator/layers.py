"""What IIANet's blocks are made of: convolution with global layer norm, feed-forward, drop path, resizing along time.

Source: JusperLee/IIANet. Axes everywhere: `(batch, channels, columns)`; a column is one position in time, of either the
audio or the video path, at one of the scales.
"""

import torch
from torch import Tensor, nn

DROP_RATE = 0.1
"""Rate of dropout and of drop path, in the fusion blocks only."""


class GlobalLayerNorm(nn.GroupNorm):
    """Normalise an item over all its channels and columns, then scale and shift each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, eps=1e-8)


class ChannelScale(nn.Conv1d):
    """A depthwise convolution of one column, computed as the product that it is: that takes a third of the time."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__(channels, channels, 1, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, columns)` -> the same shape."""
        scaled = x * self.weight.view(1, -1, 1)
        return scaled if self.bias is None else scaled + self.bias.view(1, -1, 1)


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

    def repeated(self, x: Tensor, columns: int) -> Tensor:
        """Normalise as if the columns had been repeated first: `resize(repeated(x, columns), columns)` is
        `forward(resize(x, columns))`, for a kernel of one column.

        Args:
            x: `(batch, in_channels, few)`.
            columns: To which it will be resized.

        Returns:
            `(batch, out_channels, few)`.
        """
        features = self.conv(x)  # (batch, out_channels, few)
        repeats, elements = _repeats(x, columns), columns * features.shape[1]
        mean = (features * repeats).sum((1, 2), keepdim=True) / elements  # (batch, 1, 1)
        centred = features - mean
        variance = (centred.square() * repeats).sum((1, 2), keepdim=True) / elements  # (batch, 1, 1)
        normalised = centred * torch.rsqrt(variance + self.norm.eps)
        return torch.addcmul(self.norm.bias.unsqueeze(-1), normalised, self.norm.weight.unsqueeze(-1))


class FeedForward(nn.Module):
    """Widen to twice the channels, mix five columns depthwise, and narrow again, with dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.widen = ConvNorm(channels, hidden, 1, bias=False)
        self.depthwise = nn.Conv1d(hidden, hidden, 5, padding=2, groups=hidden)
        self.narrow = ConvNorm(hidden, channels, 1, bias=False)
        self.drop = nn.Dropout(DROP_RATE)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, columns)` -> the same shape."""
        hidden = self.drop(torch.relu(self.depthwise(self.widen(x))))  # (batch, 2 * channels, columns)
        narrowed: Tensor = self.drop(self.narrow(hidden))  # (batch, channels, columns)
        return narrowed


class DropPath(nn.Module):
    """Leave a residual branch out, for whole items of the batch at a time; kept items are scaled up to make up for it.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def __init__(self, rate: float = DROP_RATE) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """`(batch, channels, columns)` -> the same shape; the identity in eval mode."""
        if not self.training:
            return branch
        item = branch.new_ones(len(branch), 1, 1)
        return branch * nn.functional.dropout(item, self.rate)


def resize(x: Tensor, columns: int) -> Tensor:
    """Repeat or skip columns, nearest neighbour: `(batch, channels, any)` -> `(batch, channels, columns)`."""
    if x.shape[-1] == columns:
        return x
    return nn.functional.interpolate(x, size=columns, mode="nearest")


def _repeats(x: Tensor, columns: int) -> Tensor:
    """How often `resize` repeats each column of `x`, `(columns of x,)`."""
    place = torch.arange(x.shape[-1], device=x.device, dtype=torch.float32)
    taken = resize(place.view(1, 1, -1), columns).flatten().long()  # (columns,)
    return torch.zeros_like(place).index_add(0, taken, torch.ones_like(taken, dtype=torch.float32))
