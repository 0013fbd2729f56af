"""Read a segment of a wav."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from configs.errors import AudioError

Samples = npt.NDArray[np.float32]


def read_segment(path: Path, num_samples: int, sample_rate: int) -> Samples:
    """Read the first `num_samples` of a mono wav, `(num_samples,)`, float32 in -1..1.

    Raises:
        AudioError: It is missing, damaged, too short, or has another rate or more channels.
    """
    try:
        samples, rate = soundfile.read(path, frames=num_samples, dtype="float32")
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"{path}: cannot be read ({error})") from error
    if rate != sample_rate or samples.shape != (num_samples,):
        raise AudioError(
            f"{path}: {samples.shape} samples at {rate} Hz; expected mono at {sample_rate} Hz and at least "
            f"{num_samples} samples, as its manifest says"
        )
    found: Samples = samples
    return found
