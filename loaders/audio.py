"""Segments of wavs, read by their paths."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from iianet.errors import AudioError
from shardwriter.corpus.manifest import Manifest

Samples = npt.NDArray[np.float32]

_SAMPLE_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}


class Segment(NamedTuple):
    """Samples `(num_samples,)`, float32 in -1..1, and the bytes that were read for them."""

    samples: Samples
    bytes_read: int


class Audio(Protocol):
    """The audio of examples; `start` is the first sample of the segment. Raises AudioError where it cannot be had."""

    def source(self, example: int, start: int) -> Segment:
        """The example's target source."""

    def mixture(self, example: int, start: int) -> Segment:
        """The example's own mixture."""


class WavFiles:
    """Reads the wavs that a manifest names.

    Args:
        manifest: Says which wavs an example has.
        num_samples: Length of the segment.
        sample_rate: Hz.
    """

    def __init__(self, manifest: Manifest, num_samples: int, sample_rate: int) -> None:
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self._root = manifest.data_root
        self._sources = manifest.examples.column("source")
        self._mixtures = manifest.examples.column("mixture")

    def source(self, example: int, start: int) -> Segment:
        """See `Audio`."""
        return self._read(self._sources[example].as_py(), start)

    def mixture(self, example: int, start: int) -> Segment:
        """See `Audio`."""
        return self._read(self._mixtures[example].as_py(), start)

    def _read(self, path: str, start: int) -> Segment:
        return read_segment(self._root / path, start, self.num_samples, self.sample_rate)


def read_segment(path: Path, start: int, num_samples: int, sample_rate: int) -> Segment:
    """Read `num_samples` of a mono wav from `start` on.

    Raises:
        AudioError: It is missing, damaged, too short, or has another rate or more channels.
    """
    try:
        with soundfile.SoundFile(path) as wav:
            wav.seek(start)
            samples: Samples = wav.read(num_samples, dtype="float32")
            rate, sample_bytes = wav.samplerate, _SAMPLE_BYTES.get(wav.subtype, 0)
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"{path}: cannot be read from sample {start} on ({error})") from error
    if rate != sample_rate or samples.shape != (num_samples,):
        raise AudioError(
            f"{path}: {samples.shape} samples at {rate} Hz from sample {start} on; expected mono at {sample_rate} Hz "
            f"and at least {num_samples} samples, as its manifest says"
        )
    return Segment(samples, sample_bytes * num_samples)
