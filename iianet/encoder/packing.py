"""Many clips in one call: laid one after the other, with gaps, so that no clip sees its neighbour.

A column sees `context_frames` frames on each side. With as many zero frames between two clips, and at both ends, each
clip comes out as if it were encoded alone:

    0 0 [ clip 0 ] 0 0 [ clip 1 ] 0 0        for context_frames = 2

All of it is cut into windows of at most `max_frames` positions, which bounds the memory that an encoder needs, however
long a clip is.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

FEWEST = 2
"""Smallest number of frames in one call of a network. A single frame has kernels of its own, which round differently:
the embedding of a clip would depend on its pack."""


def packed_windows(
    frames: Tensor,
    lengths: Sequence[int],
    *,
    context_frames: int,
    max_frames: int,
    prepare: Callable[[Tensor], Tensor] = lambda frames: frames,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut packed clips into windows.

    Args:
        frames: Frames of all clips, `(sum of lengths, height, width)`.
        lengths: Frames of each clip, at least one.
        context_frames: Frames that a column sees on each side.
        max_frames: Positions of one window.
        prepare: What is done to each frame by itself, such as to normalise it; done to those of one window at a time.
            Zero is what lies outside a clip afterwards.

    Yields:
        The frames of a window, `(positions + 2 * context_frames, height, width)`, with at least FEWEST positions; and
        which positions are frames of clips, as indices in order, `(kept,)`, int64. A window may lie in a gap: then it
        has none. All windows together keep every frame once, in order.
    """
    keep = _frames_of_clips(lengths, context_frames)
    seen = torch.zeros(len(keep) + 2 * context_frames + FEWEST, dtype=torch.bool)
    seen[context_frames : context_frames + len(keep)] = keep
    before = torch.cumsum(seen, 0) - seen.long()  # frames of clips before each position
    for begin in range(0, len(keep), max_frames):
        kept = keep[begin : begin + max_frames]
        end = begin + max(len(kept), FEWEST) + 2 * context_frames
        some = prepare(frames[int(before[begin]) : int(before[end - 1]) + int(seen[end - 1])])
        window = some.new_zeros(end - begin, *some.shape[1:])
        window[_places(seen[begin:end], frames.device)] = some
        yield window, _places(kept, frames.device)


def encode_clips(columns: Callable[[Tensor, Sequence[int]], Tensor], clips: Sequence[Tensor]) -> list[Tensor]:
    """Encode clips with the `columns` method of an encoder: what its `encode` method returns."""
    if not clips:
        return []
    lengths = [len(clip) for clip in clips]
    return [part.t() for part in torch.split(columns(torch.cat(list(clips)), lengths), lengths)]


def _frames_of_clips(lengths: Sequence[int], gap: int) -> Tensor:
    """Which positions of a pack are frames of clips, and not of the gaps between them, `(positions,)`, bool."""
    keep = torch.ones(sum(lengths) + gap * (len(lengths) - 1), dtype=torch.bool)
    end = 0
    for length in lengths[:-1]:
        end += length
        keep[end : end + gap] = False
        end += gap
    return keep


def _places(keep: Tensor, device: torch.device) -> Tensor:
    """Indices where `keep` is true. Indexing a GPU's tensor with a mask would wait for the GPU."""
    return keep.nonzero()[:, 0].to(device, non_blocking=True)
