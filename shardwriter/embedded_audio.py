"""Audio as a store holds it: the samples of the wavs, in integers as they are or in float32."""

from typing import Any

import numpy as np
import numpy.typing as npt


def decode_pcm(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """int16, int32 or float32 samples -> float32 in -1..1, a copy, as soundfile reads them."""
    decoded: npt.NDArray[np.float32] = samples.astype(np.float32)
    if samples.dtype != np.float32:
        decoded *= np.float32(1 / 2 ** (8 * samples.itemsize - 1))
    return decoded
