"""Mouth frames as a training step takes them: cropped, and cut to what the segment needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from iianet.encoder.mouth import Crop
from shardwriter.corpus.mouth_npz import read_mouth_npz


class MouthSegment(NamedTuple):
    """Crops of a segment with the frames around it that its first and last columns see.

    Attributes:
        frames: `(at most lead + frames + 2, 88, 88)`, uint8.
        lead: Frames before the segment, up to `context_frames` of the encoder.
        bytes_read: Bytes of the npz.
    """

    frames: Tensor
    lead: int
    bytes_read: int


@dataclass(frozen=True, kw_only=True)
class MouthReader:
    """Reads mouths of a corpus.

    Attributes:
        data_root: Folder that paths are relative to.
        frames: Video frames of the segment.
        context_frames: Frames that the encoder sees before the segment, and after it.
    """

    data_root: Path
    frames: int
    context_frames: int

    def read(self, mouth: str, start: int, crop: Crop) -> MouthSegment:
        """Read a clip's segment.

        Args:
            mouth: Path of the npz, relative to data_root.
            start: First frame of the segment; where the clip is shorter, its last one.
            crop: Part of each frame to cut out.

        Raises:
            MouthError: The npz cannot be used.
        """
        npz = read_mouth_npz(self.data_root / mouth)
        first = min(start, len(npz.frames) - 1)
        lead = min(first, self.context_frames)
        frames = crop.apply(npz.frames[first - lead : first + self.frames + self.context_frames])
        return MouthSegment(torch.from_numpy(frames), lead, npz.source.size or 0)
