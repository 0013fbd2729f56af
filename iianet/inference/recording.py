"""A recording of any length, rate and number of channels, heard as the separator hears: 16 kHz, one channel, in blocks.

It is read twice, so that nothing is separated of a recording that turns out to be damaged in its last minute: once to
be looked through, and once to be separated. Memory holds a block.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.errors import AudioError
from iianet.inference.windows import Samples
from iianet.regular_file import open_regular

BLOCK = 1 << 16
"""Samples of each channel that are read at a time."""
FLOATS = ("FLOAT", "DOUBLE", "PCM_24", "PCM_32")
"""Subtypes that hold more than 16 bits, whose estimates are floats: nothing of them is lost."""
LOWEST_RATE, HIGHEST_RATE = 4_000, 768_000
"""Rates that are resampled, Hz: from below a telephone's to above any recorder's."""
LOUDEST = 1e9
"""Samples of floats are about -1 to 1, and some write whole numbers as floats; what is larger is no sound."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording that has been looked through.

    Attributes:
        path: Path of its file.
        rate: Its own rate, Hz.
        channels: Channels, which are averaged.
        subtype: What a sample of the file is, in libsndfile's names, such as PCM_16 or FLOAT.
        length: Samples of each channel, at its own rate.
        num_samples: Samples at 16 kHz.
        peak: Largest sample at 16 kHz, whatever its sign.
    """

    path: Path
    rate: int
    channels: int
    subtype: str
    length: int
    num_samples: int
    peak: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.num_samples / SAMPLE_RATE

    @property
    def is_float(self) -> bool:
        """Whether its samples may have any level."""
        return self.subtype in FLOATS

    @property
    def changes(self) -> list[str]:
        """What is done to it before it is heard, in words; nothing to one channel at 16 kHz."""
        mixed = [f"its {self.channels} channels are averaged"] if self.channels > 1 else []
        return mixed + ([f"it is resampled from {self.rate} to {SAMPLE_RATE} Hz"] if self.rate != SAMPLE_RATE else [])

    def blocks(self) -> Iterator[Samples]:
        """Read it again: one channel at 16 kHz, in blocks of any size. Raises AudioError."""
        with _opened(self.path) as wav:
            for block in _mono_blocks(wav, self.path):
                yield block.heard


class _Block(NamedTuple):
    """Samples of each channel that were read, at the file's rate; and what is heard meanwhile, at 16 kHz."""

    length: int
    heard: Samples


def look_through(path: Path) -> Recording:
    """Read a recording once, to its end.

    Raises:
        AudioError: It is missing, damaged or empty, has a rate that is none of a recording, or samples that are not
            finite.
    """
    length = num_samples = 0
    peak = 0.0
    with _opened(path) as wav:
        if not LOWEST_RATE <= wav.samplerate <= HIGHEST_RATE:
            raise AudioError(
                f"{path}: has a rate of {wav.samplerate:,} Hz; expected {LOWEST_RATE:,} to {HIGHEST_RATE:,}. Its "
                "header is damaged, or it is no recording: write it again"
            )
        for block in _mono_blocks(wav, path):
            length += block.length
            num_samples += len(block.heard)
            peak = max(peak, float(np.abs(block.heard).max(initial=0)))
        recording = Recording(
            path=path,
            rate=wav.samplerate,
            channels=wav.channels,
            subtype=wav.subtype,
            length=length,
            num_samples=num_samples,
            peak=peak,
        )
    if num_samples == 0:
        raise AudioError(f"{path}: holds {length} samples, which are none at {SAMPLE_RATE} Hz; give a recording")
    return recording


def _mono_blocks(wav: soundfile.SoundFile, path: Path) -> Iterator[_Block]:
    """Read an opened file to its end. Raises AudioError where samples are not finite, or far too large."""
    resampler = None
    if wav.samplerate != SAMPLE_RATE:
        resampler = soxr.ResampleStream(wav.samplerate, SAMPLE_RATE, 1, dtype="float32")
    read = 0
    while len(block := wav.read(BLOCK, dtype="float32", always_2d=True)):
        _refuse_no_sound(block, path, read / wav.samplerate)
        read += len(block)
        mono = block.mean(axis=1) if wav.channels > 1 else np.ascontiguousarray(block[:, 0])
        yield _Block(len(block), resampler.resample_chunk(mono) if resampler else mono)
    if resampler:
        yield _Block(0, resampler.resample_chunk(np.empty(0, np.float32), last=True))


def _refuse_no_sound(block: npt.NDArray[np.float32], path: Path, seconds: float) -> None:
    if not np.abs(block).max() <= LOUDEST:  # a NaN is not, either
        wrong = block[~(np.abs(block) <= LOUDEST)]
        raise AudioError(
            f"{path}: has {len(wrong):,} samples such as {wrong[0]:g} in the block from {seconds:.1f} s on; expected "
            f"floats of about -1 to 1, and none above {LOUDEST:g}. Write the file again"
        )


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open a file for reading. Raises AudioError where that fails, here or in the block."""
    try:
        descriptor = open_regular(path)
        try:
            with soundfile.SoundFile(descriptor, closefd=False) as wav:
                yield wav
        finally:
            os.close(descriptor)
    except OSError as error:
        raise AudioError(
            f"{path}: cannot be read ({error.strerror or error}); give the path of a recording that is there"
        ) from error
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise AudioError(
            f"{path}: is no recording that can be read ({reason}); give a wav, a flac, or another file that libsndfile "
            "knows, or convert it to wav"
        ) from error
