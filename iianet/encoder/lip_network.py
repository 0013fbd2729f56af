"""Networks that read lips: a front end that sees five frames, and a trunk that sees each frame by itself.

Martinez et al. (ICASSP 2020) and Ma et al. (ICASSP 2021) give them different trunks. They are frozen here: always in
eval mode, always without gradients, so that BatchNorm neither uses nor drifts with the statistics of batches.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn

CONTEXT_FRAMES = 2
"""Frames that an output column sees to its left and to its right."""


class LipNetwork(nn.Module):
    """A frozen network for lips. Its weights are random until some are loaded (`iianet.checkpoint.load_published`).

    `iianet.encoder.lip_encoder` makes it fast.

    Args:
        front_channels: Channels that the front end gives.
        trunk: Takes `(frames, front_channels, height, width)`, each frame by itself, and gives `(frames, dim, height,
            width)` of fewer pixels, whose mean is the embedding.
    """

    def __init__(self, front_channels: int, trunk: nn.Sequential) -> None:
        super().__init__()
        self.front_end = nn.Sequential(
            nn.Conv3d(1, front_channels, (5, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(front_channels),
            nn.PReLU(front_channels),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        self.trunk = trunk
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 (frozen: there is no other mode)
        """Stay in eval mode, whatever a parent module or a Trainer asks for."""
        return super().train(False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill with He-normal weights (fan out, as the reference initialises) from `seed`, the same on any device.

        Where a convolution has groups, the fan out is that of a group: else features would vanish, layer by layer.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * math.sqrt(2.0 / fan_out))

    @torch.no_grad()
    def forward(self, mouths: Tensor) -> Tensor:
        """Encode clips of one length.

        Args:
            mouths: Normalised crops, `(batch, 1, frames, rows, 88)`.

        Returns:
            Embeddings, `(batch, dim, frames)`.
        """
        features = self.front_end(nn.functional.pad(mouths, (0, 0, 0, 0, CONTEXT_FRAMES, CONTEXT_FRAMES)))
        columns = [self.trunk(clip.transpose(0, 1)).mean(dim=(2, 3)) for clip in features]  # (frames, dim) each
        return torch.stack(columns).transpose(1, 2)
