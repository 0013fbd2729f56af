"""Read npy members from their bytes. Arrays of objects would have to be unpickled, so they are refused."""

import io
import math
from dataclasses import dataclass
from tokenize import TokenError

import numpy as np
import numpy.typing as npt

from iianet.errors import StoreError


@dataclass(frozen=True, kw_only=True)
class NpyHeader:
    """What an npy says of itself.

    Attributes:
        shape: Of the array.
        dtype: Of its values.
        column_major: Whether the first axis varies fastest.
        data_offset: Bytes before the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    column_major: bool
    data_offset: int


def read_npy_header(content: bytes, where: str) -> NpyHeader:
    """Read what an npy holds, without its values.

    Raises:
        StoreError: It is no npy of version 1 or 2. The message starts with `where`.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, column_major, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, column_major, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"version {version}; expected 1.0 or 2.0")
        if any(length < 0 for length in shape):
            raise ValueError(f"shape {shape}")
    except (ValueError, SyntaxError, TypeError, TokenError) as error:  # NumPy lets some of its parser's errors through
        reason = str(error).partition("\n")[0]
        raise StoreError(f"{where}: not an npy ({reason})") from error
    return NpyHeader(shape=shape, dtype=dtype, column_major=column_major, data_offset=stream.tell())


def read_npy(content: bytes, where: str) -> npt.NDArray[np.generic]:
    """Read an npy, read-only.

    Raises:
        StoreError: It is no npy, holds objects, or is longer or shorter than it says. The message starts with `where`.
    """
    header = read_npy_header(content, where)
    if header.dtype.hasobject:
        raise StoreError(f"{where}: an npy of Python objects, which are never unpickled; expected numbers")
    expected = header.data_offset + math.prod(header.shape) * header.dtype.itemsize
    if len(content) != expected:
        raise StoreError(
            f"{where}: an npy of {len(content):,} bytes; expected {expected:,} for {header.shape} {header.dtype}"
        )
    values = np.frombuffer(content, dtype=header.dtype, offset=header.data_offset)
    return values.reshape(header.shape, order="F" if header.column_major else "C")
