"""One array out of an npz, for mouths and embeddings alike: what is decoded is what was digested.

NumPy's own reader inflates whatever a file asks for and hands headers to Python's parser, which is not safe in threads.
Here nothing is inflated before the sizes that the zip, the npy header and the file declare agree.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from iianet.errors import MouthError
from iianet.regular_file import content_of, read_regular
from iianet.wording import LISTED
from shardwriter.format.npy import NpyHeader, parse_npy_header
from shardwriter.format.sample import Source

MOST_BYTES = 2 << 30
"""Bytes of the largest file that is read, and of the largest array: a mouth of two and a half hours."""
MOST_RATIO = 1100
"""Deflate packs at most 1,032 bytes into one: who says more lies."""
MOST_DIRECTORY_BYTES = 1 << 20
"""Bytes of the longest directory of a zip that is read: tens of thousands of arrays."""
_SHORTEST_END, _LONGEST_END = 22, 22 + (1 << 16)
"""Bytes of the record that ends a zip, without a comment and with the longest one."""
_FIRST_BYTES, _PIECE_BYTES = 16 << 10, 256 << 10
"""Bytes that are unpacked at first, to see the header, and then at a time: what a cache holds while it is copied."""


def read_npz(path: Path, key: str) -> tuple[npt.NDArray[Any], Source]:
    """Read a file whole, once: an array of it, and the file as it lay on disk.

    Raises:
        MouthError: It is missing, no regular file, unreadable, truncated, larger than `MOST_BYTES`, holds objects, or
            has no array of this key.
    """
    with _named(path, key):
        content, mtime_ns = content_of(path, MOST_BYTES)
        source = Source(size=len(content), mtime_ns=mtime_ns, digest=xxhash.xxh3_64_hexdigest(content))
        with _opened(io.BytesIO(content), len(content), key) as (header, first, stream):
            return _values(header, first, stream), source


def npz_shape(path: Path, key: str) -> tuple[int, ...]:
    """Shape of an array of an npz, without reading its values. Raises MouthError as `read_npz` does."""
    with _named(path, key), read_regular(path) as file, _opened(file, file.seek(0, io.SEEK_END), key) as (header, *_):
        return header.shape


@contextmanager
def _named(path: Path, key: str) -> Iterator[None]:
    """Make whatever damage raises in the block a MouthError that names the file."""
    try:
        yield
    except MouthError as error:
        raise MouthError(f"{path}: {error}") from error
    except OSError as error:
        raise MouthError(f"{path}: cannot be read ({error.strerror})") from error
    except MemoryError as error:
        raise MouthError(
            f"{path}: {key!r} cannot be decoded (there is too little memory for it); read fewer at a time, by a lower "
            "shardwriter.num_workers"
        ) from error
    except (NotImplementedError, EOFError, ValueError, OverflowError, zipfile.BadZipFile, zlib.error) as error:
        raise MouthError(f"{path}: {key!r} cannot be decoded ({error})") from error


@contextmanager
def _opened(file: IO[bytes], size: int, key: str) -> Iterator[tuple[NpyHeader, bytes, IO[bytes]]]:
    """Open an array of a file of `size` bytes: header, first values, and others. Raises what `_named` knows."""
    if not _has_directory(file, size):
        raise MouthError(f"not a complete npz ({size:,} bytes); expected a zip with the key {key!r}")
    with zipfile.ZipFile(file) as archive:
        found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if key not in found:
            more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
            raise MouthError(f"has the keys {sorted(found)[:LISTED]}{more}; expected {key!r}")
        info = found[key]
        _refuse_false_sizes(info)
        with archive.open(info) as stream:
            first = stream.read(_FIRST_BYTES)
            header = parse_npy_header(first)
            expected = header.data_offset + header.data_bytes
            if expected != info.file_size:
                raise ValueError(
                    f"an npy of {info.file_size:,} bytes; expected {expected:,} for {header.shape} {header.dtype}"
                )
            yield header, first[header.data_offset :], stream


def _values(header: NpyHeader, piece: bytes, others: IO[bytes]) -> npt.NDArray[Any]:
    """Read an array to its end, where the zip's CRC is checked."""
    flat = np.empty(math.prod(header.shape), header.dtype)
    unfilled = flat.view(np.uint8)
    while piece:
        unfilled[: len(piece)] = np.frombuffer(piece, np.uint8)
        unfilled = unfilled[len(piece) :]
        piece = others.read(_PIECE_BYTES)
    if len(unfilled):
        whole = header.data_offset + header.data_bytes
        raise ValueError(f"it unpacks to {whole - len(unfilled):,} bytes; expected {whole:,}, as it says")
    return flat.reshape(header.shape, order="F" if header.column_major else "C")


def _has_directory(file: IO[bytes], size: int) -> bool:
    """Whether a file ends as zips do. Raises ValueError where the directory is longer than that of any npz."""
    file.seek(max(0, size - _LONGEST_END))
    tail = file.read(_LONGEST_END)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < _SHORTEST_END:
        return False
    directory_bytes = int.from_bytes(tail[end + 12 : end + 16], "little")
    if directory_bytes > MOST_DIRECTORY_BYTES or tail[max(0, end - 20) : end].startswith(b"PK\x06\x07"):  # of a zip64
        raise ValueError(f"its zip lists files in {directory_bytes:,} bytes; expected a few arrays")
    return True


def _refuse_false_sizes(info: zipfile.ZipInfo) -> None:
    """Raise ValueError where an array is not packed as NumPy does, or cannot be as large as it says."""
    if info.flag_bits & 1:
        raise ValueError("it is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"packed by method {info.compress_type} of zips; expected deflate or none, as NumPy writes it")
    if info.file_size > min(MOST_BYTES, MOST_RATIO * info.compress_size):
        raise ValueError(
            f"{info.compress_size:,} bytes are said to unpack to {info.file_size:,}; expected at most {MOST_RATIO:,} "
            f"times as many, and no more than {MOST_BYTES:,}"
        )
