"""Mouth frames as a training step takes them: cropped, and cut to what the segment needs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iianet.mouth import CROP_SIZE, FRAME_SIZE, center_crop, crop
from iianet.mouth_npz import read_mouth_npz
from iianet.video_encoder import CONTEXT_FRAMES

FLIP_PROBABILITY = 0.5
"""Of a training clip, as in the reference."""


@dataclass(frozen=True, kw_only=True)
class RawMouths:
    """Reads mouths of a corpus.

    Attributes:
        data_root: Folder that paths are relative to.
        frames: Of the segment.
    """

    data_root: Path
    frames: int

    def read(self, mouth: str, augmentation: np.random.Generator | None = None) -> Tensor:
        """Read a clip's segment with the two frames of context that its last columns see.

        Args:
            mouth: npz, relative to data_root.
            augmentation: Draws a random crop and flip, as the reference trains with; None is the centre crop.

        Returns:
            `(at most frames + 2, 88, 88)`, uint8.

        Raises:
            MouthError: It cannot be used.
        """
        frames = torch.from_numpy(read_mouth_npz(self.data_root / mouth).frames)[: self.frames + CONTEXT_FRAMES]
        if augmentation is None:
            return center_crop(frames)
        top, left = augmentation.integers(FRAME_SIZE - CROP_SIZE + 1, size=2)
        return crop(frames, int(top), int(left), flip=bool(augmentation.random() < FLIP_PROBABILITY))
