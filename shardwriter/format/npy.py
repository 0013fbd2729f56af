"""Read npy members from their bytes. Arrays of objects would have to be unpickled, so they are refused.

The header is taken apart by patterns: NumPy evaluates it as Python, which deep nesting ends, threads disturb, and which
costs ten times as much.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from iianet.errors import StoreError

MAGIC: Final = b"\x93NUMPY"
NPY_HEADER_BYTES: Final = 128
"""Header of every npy member that stores write: NumPy pads short ones to this, so data starts at a fixed distance."""
MOST_AXES: Final = 32
LONGEST_HEADER: Final = 10_000
"""Bytes; as NumPy has it."""
MOST_VALUES: Final = 1 << 48
"""More than any file holds, and far from where NumPy's own integers end."""
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}
_VALUES = {
    "descr": r"['\"](?P<descr>[<>=|]?[A-Za-z?][0-9]{0,9}(?:\[[A-Za-z0-9]+\])?)['\"]",
    "fortran_order": r"(?P<fortran_order>True|False)",
    "shape": r"\((?P<shape>(?:[0-9]{1,19}L?, ?)*(?:[0-9]{1,19}L?)?)\)",
}
_ITEMS = {name: re.compile(rf" *['\"]{name}['\"] *: *{value} *(?:,|(?=\}}))") for name, value in _VALUES.items()}


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

    @property
    def data_bytes(self) -> int:
        """Bytes of the values, by what it says."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_npy_header(content: bytes) -> NpyHeader:
    """Read what an npy holds, out of its first bytes.

    Raises:
        ValueError: It is no npy of version 1 or 2, or one of records or of objects, which would have to be unpickled.
    """
    if content[:6] != MAGIC or len(content) < 8:
        raise ValueError(f"it starts with {content[:8]!r}; expected {MAGIC!r}")
    version = content[6], content[7]
    if version not in _LENGTH_BYTES:
        raise ValueError(f"version {version}; expected 1.0 or 2.0")
    start = 8 + _LENGTH_BYTES[version]
    length = int.from_bytes(content[8:start], "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"a header of {length:,} bytes; expected at most {LONGEST_HEADER:,}")
    if len(content) < start + length:
        raise ValueError("it breaks off in its header")
    found = _parse_items(content[start : start + length].decode("latin-1"))
    return NpyHeader(
        shape=_parse_shape(found["shape"]),
        dtype=_parse_dtype(found["descr"]),
        column_major=found["fortran_order"] == "True",
        data_offset=start + length,
    )


def _parse_items(text: str) -> dict[str, str]:
    """The three items of a header, in whatever order they come."""
    found: dict[str, str] = {}
    inside = text.strip(" \n\0")
    at = 1
    while inside[:1] == "{" and len(found) < len(_ITEMS):
        matches = [match for name, item in _ITEMS.items() if name not in found and (match := item.match(inside, at))]
        if not matches:
            break
        found |= matches[0].groupdict()
        at = matches[0].end()
    if len(found) < len(_ITEMS) or inside[at:].strip() != "}":
        raise ValueError(f"the header {text[:100]!r}; expected descr, fortran_order and shape of a plain array")
    return found


def _parse_shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(axis.rstrip("L")) for axis in text.replace(" ", "").split(",") if axis)
    if len(shape) > MOST_AXES:
        raise ValueError(f"{len(shape)} axes; expected at most {MOST_AXES}")
    if math.prod(axis or 1 for axis in shape) > MOST_VALUES:
        raise ValueError(f"the shape {shape}; expected at most {MOST_VALUES:,} values")
    return shape


def _parse_dtype(text: str) -> np.dtype[np.generic]:
    try:
        dtype = np.dtype(text)
    except TypeError as error:
        raise ValueError(f"the dtype {text!r}") from error
    if dtype.hasobject:
        raise ObjectArrayError("an npy of Python objects, which are never unpickled; expected numbers")
    if not dtype.itemsize:
        raise ValueError(f"the dtype {text!r}, whose values have no bytes")
    return dtype


class ObjectArrayError(ValueError):
    """An npy holds Python objects."""


def read_npy_header(content: bytes, where: str) -> NpyHeader:
    """Read what an npy holds, without its values.

    Raises:
        StoreError: It is no npy of version 1 or 2, or one of records or objects. The message starts with `where`.
    """
    try:
        return parse_npy_header(content)
    except ObjectArrayError as error:
        raise StoreError(f"{where}: {error}") from error
    except ValueError as error:
        raise StoreError(f"{where}: not an npy ({error})") from error


def read_npy(content: bytes, where: str) -> npt.NDArray[np.generic]:
    """Read an npy, read-only.

    Raises:
        StoreError: It is no npy, holds objects, or is longer or shorter than it says. The message starts with `where`.
    """
    header = read_npy_header(content, where)
    expected = header.data_offset + header.data_bytes
    if len(content) != expected:
        raise StoreError(
            f"{where}: an npy of {len(content):,} bytes; expected {expected:,} for {header.shape} {header.dtype}"
        )
    values = np.frombuffer(content, dtype=header.dtype, offset=header.data_offset)
    return values.reshape(header.shape, order="F" if header.column_major else "C")
