"""Read one mouth npz of the corpus, and say precisely what is wrong with those that cannot be used."""

import io
import lzma
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from configs.errors import MouthError
from iianet.mouth import FRAME_SIZE

MOUTH_KEY = "data"

DAMAGE = (
    OSError,
    EOFError,
    MemoryError,  # a header that asks for more than there is
    NotImplementedError,
    OverflowError,  # a shape beyond all numbers
    RuntimeError,  # an encrypted zip
    TypeError,
    ValueError,
    lzma.LZMAError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy and zipfile raise on damaged files."""


@dataclass(frozen=True, kw_only=True)
class MouthNpz:
    """One utterance's mouth video as it lay on disk.

    Attributes:
        frames: Grey levels, `(frames, 96, 96)`, uint8, 25 fps.
        size: Bytes of the file.
        mtime_ns: Modification time of the file, nanoseconds.
        digest: xxh3_64 of the file, hexadecimal.
    """

    frames: npt.NDArray[np.uint8]
    size: int
    mtime_ns: int
    digest: str


def read_mouth_npz(path: Path) -> MouthNpz:
    """Read a mouth npz whole, once: what is decoded is what was digested.

    Raises:
        MouthError: It is missing, unreadable, truncated, pickled, has no `data`, or `data` is not
            `(frames, 96, 96)` uint8 with at least one frame.
    """
    try:
        stat = path.stat()
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        raise MouthError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error
    return MouthNpz(
        frames=_decode(path, content),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        digest=xxhash.xxh3_64_hexdigest(content),
    )


def _decode(path: Path, content: bytes) -> npt.NDArray[np.uint8]:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise MouthError(
            f"{path}: not a complete npz ({len(content):,} bytes); expected a zip with the key {MOUTH_KEY!r}"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if MOUTH_KEY not in archive.files:
                raise MouthError(f"{path}: has the keys {sorted(archive.files)}; expected {MOUTH_KEY!r}")
            frames: npt.NDArray[np.uint8] | bytes = archive[MOUTH_KEY]
    except DAMAGE as error:
        raise MouthError(f"{path}: {MOUTH_KEY!r} cannot be decoded ({error})") from error
    if isinstance(frames, bytes):
        raise MouthError(f"{path}: {MOUTH_KEY!r} is no npy array")
    if frames.ndim != 3 or frames.shape[1:] != (FRAME_SIZE, FRAME_SIZE) or frames.dtype != np.uint8:
        raise MouthError(
            f"{path}: {MOUTH_KEY!r} is {frames.shape} {frames.dtype}; "
            f"expected (frames, {FRAME_SIZE}, {FRAME_SIZE}) uint8"
        )
    if len(frames) == 0:
        raise MouthError(f"{path}: {MOUTH_KEY!r} has no frames")
    return frames
