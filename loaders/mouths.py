"""Mouth frames as a training step takes them: cropped, and cut to what the segment needs."""

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


def read_mouth_segment(path: Path, start: int, frames: int, context_frames: int, crop: Crop) -> MouthSegment:
    """Read a clip's segment.

    Args:
        path: Path of the npz.
        start: First frame of the segment; where the clip is shorter, its last one.
        frames: Video frames of the segment.
        context_frames: Frames that the encoder sees before the segment, and after it.
        crop: Part of each frame to cut out.

    Raises:
        MouthError: The npz cannot be used.
    """
    npz = read_mouth_npz(path)
    first = min(start, len(npz.frames) - 1)
    lead = min(first, context_frames)
    cropped = crop.apply(npz.frames[first - lead : first + frames + context_frames])
    return MouthSegment(torch.from_numpy(cropped), lead, npz.source.size or 0)
