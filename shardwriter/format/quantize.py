"""Embeddings as they are stored: floats, or int8 with a scale for each row."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LARGEST = 127
"""Of the stored integers, on both sides of 0."""
SMALLEST_SCALE = np.finfo(np.float32).tiny
"""Below it float32 loses digits, so that a quotient could leave int8; such rows are as good as zero."""


class Stored(NamedTuple):
    """An embedding as it is stored: values `(dim, frames)`, and where they are int8 a scale `(dim,)`."""

    values: npt.NDArray[Any]
    scale: npt.NDArray[np.float32] | None


def as_stored(embedding: npt.NDArray[Any], dtype: str) -> Stored | None:
    """Convert a float embedding `(dim, frames)` to a store's dtype; None where what is read back is not finite."""
    with np.errstate(over="ignore"):
        values = embedding.astype("float16" if dtype == "int8" else dtype)  # int8 is read as float16
    if not np.isfinite(values).all():
        return None
    return Stored(*quantize(embedding.astype(np.float32))) if dtype == "int8" else Stored(values, None)


def quantize(embedding: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round each row to 255 even steps.

    Args:
        embedding: `(dim, frames)`, finite.

    Returns:
        Integers `(dim, frames)`, int8, and scales `(dim,)`, float32, 1 for rows of zeros: their product is within half
        a scale of what was given.
    """
    scale = (np.abs(embedding).max(axis=1) / LARGEST).astype(np.float32)
    scale[scale < SMALLEST_SCALE] = 1
    return np.rint(embedding / scale[:, None]).astype(np.int8), scale


def dequantize(
    values: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Undo `quantize`, into `out` `(dim, frames)` of any float dtype where it is given, else in float32."""
    found: npt.NDArray[Any] = np.multiply(values, scale[:, None], out=out, casting="unsafe", dtype=np.float32)
    return found
