"""Mouths of any length: encoded in pieces, so that an hour takes no more of a device's memory than a minute, and never
of another length than the mixture that they are of."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.encoder.protocol import Encoder
from iianet.errors import MouthError

PIECE = 1024
"""Frames that are encoded at a time, and as many on either side as a column sees."""
USUAL_RATES = (24, 30, 50, 60)
"""Frames per second that videos have where not 25."""


def encode_long(
    encoder: Encoder,
    frames: npt.NDArray[np.uint8],
    device: torch.device,
    done: Callable[[int], object] = int,
) -> Tensor:
    """Encode a mouth of any length; on a CPU to the bit as `encoder.encode` does.

    Args:
        encoder: Encoder, on its device.
        frames: Crops, `(frames, 88, 88)`, at least one.
        device: Device of the encoder.
        done: Called with the number of frames of each piece that is done.

    Returns:
        Embedding, `(dim, frames)`, float32, on the CPU.
    """
    context = encoder.context_frames
    columns = torch.empty(len(frames), encoder.dim)
    for start in range(0, len(frames), PIECE):
        first, count = max(0, start - context), min(PIECE, len(frames) - start)
        seen = np.ascontiguousarray(frames[first : start + count + context])
        encoded = encoder.columns(torch.from_numpy(seen).to(device), [len(seen)])
        columns[start : start + count] = encoded[start - first : start - first + count]
        done(count)
    return columns.t()


def refuse_other_length(name: str, frames: int, num_samples: int, samples_per_frame: int, tolerance: int) -> None:
    """Raise MouthError where a mouth is more than `tolerance` frames longer or shorter than its mixture.

    It is an error and no warning, for the estimate would be of nobody: such a mouth is of another recording, was cut at
    another place, or has another frame rate, and then no frame shows what is heard.

    Args:
        name: What messages call it.
        frames: Frames of the mouth.
        num_samples: Samples of the mixture.
        samples_per_frame: Samples that a frame spans.
        tolerance: Frames.
    """
    whole, begun = num_samples // samples_per_frame, -(-num_samples // samples_per_frame)
    if whole - tolerance <= frames <= begun + tolerance:
        return
    seconds, fps = num_samples / SAMPLE_RATE, SAMPLE_RATE / samples_per_frame
    usual = next((usual for usual in USUAL_RATES if abs(frames / seconds - usual) < usual / 50), None)
    cure = "give the mouth of this very recording, from its start to its end"
    if usual is not None:
        cure = f"perhaps it has {usual} frames a second: convert its video to {fps:g}, and make the mouth again"
    raise MouthError(
        f"{name}: has {frames:,} frames, {frames / fps:.2f} s at {fps:g} a second, and the mixture has {seconds:.2f} "
        f"s; {cure}. To separate nevertheless, with its last frame repeated or its last ones left out, give "
        f"--frame_tolerance {max(whole - frames, frames - begun)}"
    )
