"""A second encoder, for tests: grey levels of eight blocks of the mouth, and how they change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from iianet.encoder.fingerprint import weights_fingerprint
from iianet.encoder.kernels import DTYPES, Kernels
from iianet.encoder.packing import encode_clips, packed_windows
from iianet.errors import WeightsError

ROWS, COLUMNS = 2, 4
"""Blocks of a frame, downwards and across."""
HEIGHT, WIDTH = 44, 22
"""Size of a block, pixels."""


class TinyEncoder(nn.Module):
    """Mean grey level of each block, plus its change from the frame before to the frame after, times a random gain."""

    name: ClassVar[str] = "TinyEncoder"
    dim: ClassVar[int] = ROWS * COLUMNS
    fps: ClassVar[int] = 25
    context_frames: ClassVar[int] = 1
    fewest_rows: ClassVar[int] = ROWS * HEIGHT
    preprocessing: ClassVar[Mapping[str, Any]] = {"crop": "center", "crop_size": 88, "scale": 255}
    published: ClassVar[str] = "no file: TinyEncoder has random weights alone"

    def __init__(self, seed: int, kernels: Kernels, crop_rows: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.crop_rows = crop_rows
        self.gains: Tensor
        self.register_buffer("gains", 1 + torch.rand(self.dim, generator=torch.Generator().manual_seed(seed)))
        self.fingerprint = weights_fingerprint(self)
        self.to(DTYPES[kernels.dtype])

    @classmethod
    def load(cls, pretrain: Path | None, seed: int, kernels: Kernels, crop_rows: int) -> Self:
        if pretrain is not None:
            raise WeightsError(f"{pretrain}: TinyEncoder reads no weights; set videonet.videonet_config.pretrain=null")
        return cls(seed, kernels, crop_rows)

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        return encode_clips(self.columns, clips)

    def columns(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        windows = packed_windows(
            frames, lengths, context_frames=self.context_frames, max_frames=self.kernels.max_frames
        )
        return torch.cat([self._columns_of(window)[places] for window, places in windows]).float()

    def _columns_of(self, window: Tensor) -> Tensor:
        """`(positions + 2, 88, 88)`, uint8 -> `(positions, 8)`."""
        blocks = window.reshape(-1, ROWS, HEIGHT, COLUMNS, WIDTH)  # (positions + 2, 2, 44, 4, 22)
        sums = blocks.sum(dim=(2, 4), dtype=torch.int64).flatten(1)  # whole numbers, so that no order of sums rounds
        levels = (sums / (255 * HEIGHT * WIDTH)).to(self.gains.dtype)
        columns: Tensor = (levels[1:-1] + levels[2:] - levels[:-2]) * self.gains
        return columns
