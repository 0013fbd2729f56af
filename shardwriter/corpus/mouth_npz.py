"""Read one mouth npz of the corpus, and say precisely what is wrong with those that cannot be used."""

import io
import lzma
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from iianet.encoder.mouth import FRAME_SIZE
from iianet.errors import MouthError

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
class NpzFile:
    """A file as it lay on disk.

    Attributes:
        size: Bytes.
        mtime_ns: Modification time, nanoseconds.
        digest: xxh3_64, hexadecimal.
    """

    size: int
    mtime_ns: int
    digest: str


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


def read_npz(path: Path, key: str) -> tuple[npt.NDArray[Any], NpzFile]:
    """Read a file whole, once: what is decoded is what was digested.

    Raises:
        MouthError: It is missing, unreadable, truncated, pickled, or has no array of this key.
    """
    try:
        stat = path.stat()
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        raise MouthError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error
    file = NpzFile(size=stat.st_size, mtime_ns=stat.st_mtime_ns, digest=xxhash.xxh3_64_hexdigest(content))
    return _decode(path, content, key), file


def _decode(path: Path, content: bytes, key: str) -> npt.NDArray[Any]:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise MouthError(f"{path}: not a complete npz ({len(content):,} bytes); expected a zip with the key {key!r}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if key not in archive.files:
                raise MouthError(f"{path}: has the keys {sorted(archive.files)}; expected {key!r}")
            found: npt.NDArray[Any] | bytes = archive[key]
    except DAMAGE as error:
        raise MouthError(f"{path}: {key!r} cannot be decoded ({error})") from error
    if isinstance(found, bytes):
        raise MouthError(f"{path}: {key!r} is no npy array")
    return found
