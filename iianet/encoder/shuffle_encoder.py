"""Small lip encoders: mouth frames -> one 1024-vector per frame, by a ShuffleNet V2.

The video networks snv1x and snv05x of mpc001/Lipreading_using_Temporal_Convolutional_Networks (Ma et al., Towards
Practical Lipreading with Distilled and Efficient Models, ICASSP 2021): a front end of 24 channels, then the stages and
the last convolution of ShuffleNet V2 (Ma et al., ECCV 2018), of width 1.0 or 0.5, per frame. 1,258,860 and 347,048
parameters, 0.035 and 0.017 GMAC a frame.

From that repository's code are the layers, the names of tensors, and that files hold `model_state_dict`, with a
temporal network that is dropped. The files themselves were never at hand: loading is tested with made ones of the same
names and shapes, and no embedding was compared with one that the published code makes of published weights.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from iianet.checkpoint import LIP_PARTS, PublishedForm, lip_weights
from iianet.encoder.lip_encoder import LipEncoder
from iianet.encoder.lip_network import LipNetwork

FRONT_CHANNELS = 24
"""Channels of the front end."""
STAGE_BLOCKS = (4, 8, 4)
"""Blocks of the three stages of the trunk."""
STAGE_CHANNELS = {1.0: (116, 232, 464), 0.5: (48, 96, 192)}
"""Width -> channels of the stages."""
EMBEDDING_DIM = 1024
"""Rows of an embedding, of either width."""
MODEL_ZOO = "models in the Model Zoo of https://github.com/mpc001/Lipreading_using_Temporal_Convolutional_Networks"


def pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A 1x1 convolution, BatchNorm and ReLU."""
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]


def depthwise(channels: int, stride: int) -> list[nn.Module]:
    """A 3x3 convolution of each channel by itself, and BatchNorm."""
    convolution = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


class ShuffleBlock(nn.Module):
    """One half of the channels goes through a branch and the other passes; then their channels take turns.

    The first block of a stage gives more channels and a fourth of the pixels: there all channels go through the branch,
    and through a shortcut that gives the other half.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        is_first = in_channels != out_channels
        stride, taken = (2, in_channels) if is_first else (1, half)
        self.shortcut = nn.Sequential(*depthwise(in_channels, 2), *pointwise(in_channels, half)) if is_first else None
        self.branch = nn.Sequential(*pointwise(taken, half), *depthwise(half, stride), *pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, height, width)` -> `(batch, out_channels, height/stride, width/stride)`."""
        if self.shortcut is None:
            passed, taken = x.chunk(2, dim=1)
        else:
            passed, taken = self.shortcut(x), x
        return torch.stack((passed, self.branch(taken)), dim=2).flatten(1, 2)


class ShuffleNet(LipNetwork):
    """The lip network with a trunk of ShuffleNet V2.

    The published one ends in a pool of 3x3 pixels. The mean of all pixels is the same, since 65 to 88 rows leave three.

    Args:
        width: 1.0 or 0.5.
    """

    def __init__(self, width: float) -> None:
        channels = STAGE_CHANNELS[width]
        blocks: list[nn.Module] = []
        for (before, after), count in zip(pairwise((FRONT_CHANNELS, *channels)), STAGE_BLOCKS, strict=True):
            blocks += [ShuffleBlock(before, after), *(ShuffleBlock(after, after) for _ in range(count - 1))]
        last = nn.Sequential(*pointwise(channels[-1], EMBEDDING_DIM))
        super().__init__(FRONT_CHANNELS, nn.Sequential(nn.Sequential(*blocks), last))


class ShuffleEncoder(LipEncoder):
    """ShuffleNet V2 of width 1.0."""

    name: ClassVar[str] = "ShuffleNetV2_1x"
    width: ClassVar[float] = 1.0
    dim: ClassVar[int] = EMBEDDING_DIM
    fewest_rows: ClassVar[int] = 65
    """Fewer leave the published network's last pool less than the three rows that it takes."""
    fewest_frames: ClassVar[int] = 16
    """Fewer have kernels of their own where a CPU computes 1x1 convolutions in one thread."""
    published: ClassVar[str] = f"snv1x_dsmstcn3x, snv1x_tcn2x or snv1x_tcn1x, {MODEL_ZOO}"
    form: ClassVar[PublishedForm] = PublishedForm(
        parts={**LIP_PARTS, "shortcut": "banch1", "branch": "banch2"},
        weights=lip_weights,
        cure=(
            "give a file with 'model_state_dict' of a ShuffleNet V2 of that width, snv1x or snv05x, or set "
            "videonet.videonet_name to the encoder that it is of"
        ),
    )

    @classmethod
    def make_network(cls) -> ShuffleNet:
        """See `LipEncoder`."""
        return ShuffleNet(cls.width)


class HalfShuffleEncoder(ShuffleEncoder):
    """ShuffleNet V2 of width 0.5."""

    name: ClassVar[str] = "ShuffleNetV2_05x"
    width: ClassVar[float] = 0.5
    published: ClassVar[str] = f"snv05x_tcn2x or snv05x_tcn1x, {MODEL_ZOO}"
