"""Read one array of an npz, and say precisely what is wrong with a file that cannot be used."""

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

from iianet.errors import MouthError

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
