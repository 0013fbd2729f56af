"""Read one mouth npz of the corpus, and say precisely what is wrong with those that cannot be used."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iianet.encoder.mouth import FRAME_SIZE
from iianet.errors import MouthError
from shardwriter.corpus.npz import read_npz
from shardwriter.format.sample import Source

MOUTH_KEY = "data"


class MouthNpz(NamedTuple):
    """One utterance's mouth video, grey levels `(frames, 96, 96)`, uint8, 25 fps, and its file as it lay on disk."""

    frames: npt.NDArray[np.uint8]
    source: Source


def read_mouth_npz(path: Path) -> MouthNpz:
    """Read a mouth npz whole, once.

    Raises:
        MouthError: See `read_npz`; or `data` is not `(frames, 96, 96)` uint8 with at least one frame.
    """
    frames, source = read_npz(path, MOUTH_KEY)
    if frames.ndim != 3 or frames.shape[1:] != (FRAME_SIZE, FRAME_SIZE) or frames.dtype != np.uint8:
        raise MouthError(
            f"{path}: {MOUTH_KEY!r} is {frames.shape} {frames.dtype}; "
            f"expected (frames, {FRAME_SIZE}, {FRAME_SIZE}) uint8"
        )
    if len(frames) == 0:
        raise MouthError(f"{path}: {MOUTH_KEY!r} has no frames")
    return MouthNpz(frames, source)
