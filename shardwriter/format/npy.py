"""Read npy members from their bytes. Arrays of objects would have to be unpickled, so they are refused.

The header is parsed here, not by NumPy, which hands it to Python's own parser: that is not safe in several threads
(Python 3.11: "AST constructor recursion depth mismatch"), and a header of many minus signs ends the process.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iianet.errors import StoreError

MAGIC = b"\x93NUMPY"
MOST_HEADER_BYTES = 4096
"""Bytes of the longest header that is read; that of an array of plain values has 128."""
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}
"""Version -> bytes of the header's length."""
_MOST_AXES = 32
_MOST_BYTES = 1 << 60
_SHOWN = 200
_FIELD = re.compile(
    r"""\s*(?:
        'descr'\s*:\s*'(?P<descr>[<>=|]?[?A-Za-z][0-9]{0,9})'
        | 'fortran_order'\s*:\s*(?P<fortran_order>True|False)
        | 'shape'\s*:\s*\((?P<shape>[0-9L,\s]*)\)
    )\s*(?:,\s*)?""",
    re.VERBOSE,
)


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

    def refuse(self, size: int, where: str) -> None:
        """Raise StoreError where the whole npy, of `size` bytes, holds objects, or not what this header says."""
        if self.dtype.hasobject:
            raise StoreError(f"{where}: an npy of Python objects, which are never unpickled; expected numbers")
        expected = self.data_offset + math.prod(self.shape) * self.dtype.itemsize
        if size != expected:
            raise StoreError(f"{where}: an npy of {size:,} bytes; expected {expected:,} for {self.shape} {self.dtype}")


def read_npy_header(content: bytes, where: str) -> NpyHeader:
    """Read what an npy holds, without its values.

    Args:
        content: At least its first `MOST_HEADER_BYTES`, or all of it.
        where: What the message of an error starts with.

    Raises:
        StoreError: It is no npy of version 1 or 2, or not one of plain values.
    """
    try:
        return _parse(content)
    except (ValueError, TypeError) as error:
        raise StoreError(f"{where}: not an npy ({error})") from error


def _parse(content: bytes) -> NpyHeader:
    """Raise ValueError, or TypeError of NumPy's dtypes, where it is no header."""
    if not content.startswith(MAGIC) or len(content) < len(MAGIC) + 2:
        raise ValueError(f"it starts with {content[: len(MAGIC)]!r}; expected {MAGIC!r} and a version")
    version = (content[len(MAGIC)], content[len(MAGIC) + 1])
    if version not in _LENGTH_BYTES:
        raise ValueError(f"version {version}; expected 1.0 or 2.0")
    start = len(MAGIC) + 2 + _LENGTH_BYTES[version]
    end = start + int.from_bytes(content[len(MAGIC) + 2 : start], "little")
    if end > MOST_HEADER_BYTES or end > len(content):
        raise ValueError(f"a header of {end:,} bytes; there are {len(content):,}, and at most {MOST_HEADER_BYTES:,}")
    fields = _fields(content[start:end].decode("latin-1").strip())
    lengths = fields["shape"].strip().removesuffix(",")
    shape = tuple(int(length.strip().rstrip("L")) for length in lengths.split(",")) if lengths else ()
    dtype = np.dtype(fields["descr"])
    if len(shape) > _MOST_AXES or not 0 < math.prod(filter(None, shape)) * dtype.itemsize <= _MOST_BYTES:
        raise ValueError(f"shape ({lengths[:_SHOWN]}) of {dtype}, which no array has")
    return NpyHeader(shape=shape, dtype=dtype, column_major=fields["fortran_order"] == "True", data_offset=end)


def _fields(text: str) -> dict[str, str]:
    """The values of `{'descr': '|u1', 'fortran_order': False, 'shape': (3, 96, 96), }`, by their names, as text."""
    found: dict[str, str] = {}
    place, end = 1, len(text) - 1
    while place < end:
        field = _FIELD.match(text, place, end)
        if field is None:
            break
        found.update({name: value for name, value in field.groupdict().items() if value is not None})
        place = field.end()
    if not (text.startswith("{") and text.endswith("}")) or place != end or len(found) != len(_FIELD.groupindex):
        raise ValueError(f"the header {text[:_SHOWN]!r}; expected descr, fortran_order and shape of plain values")
    return found


def read_npy(content: bytes, where: str) -> npt.NDArray[np.generic]:
    """Read an npy, read-only.

    Raises:
        StoreError: It is no npy, holds objects, or is longer or shorter than it says. The message starts with `where`.
    """
    header = read_npy_header(content, where)
    header.refuse(len(content), where)
    values = np.frombuffer(content, dtype=header.dtype, offset=header.data_offset)
    return values.reshape(header.shape, order="F" if header.column_major else "C")
