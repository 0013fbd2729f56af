"""Read one mouth npz of the corpus, and say precisely what is wrong with those that cannot be used."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iianet.encoder.mouth import FRAME_SIZE
from iianet.errors import MouthError
from shardwriter.corpus.npz import NpzFile, read_npz

MOUTH_KEY = "data"


@dataclass(frozen=True, kw_only=True)
class MouthNpz(NpzFile):
    """One utterance's mouth video as it lay on disk.

    Attributes:
        frames: Grey levels, `(frames, 96, 96)`, uint8, 25 fps.
    """

    frames: npt.NDArray[np.uint8]


def read_mouth_npz(path: Path) -> MouthNpz:
    """Read a mouth npz whole, once.

    Raises:
        MouthError: See `read_npz`; or `data` is not `(frames, 96, 96)` uint8 with at least one frame.
    """
    frames, file = read_npz(path, MOUTH_KEY)
    if frames.ndim != 3 or frames.shape[1:] != (FRAME_SIZE, FRAME_SIZE) or frames.dtype != np.uint8:
        raise MouthError(
            f"{path}: {MOUTH_KEY!r} is {frames.shape} {frames.dtype}; "
            f"expected (frames, {FRAME_SIZE}, {FRAME_SIZE}) uint8"
        )
    if len(frames) == 0:
        raise MouthError(f"{path}: {MOUTH_KEY!r} has no frames")
    return MouthNpz(frames=frames, size=file.size, mtime_ns=file.mtime_ns, digest=file.digest)
