"""An estimate on its way into a wav that is there whole or not at all, at the level that the network gives it."""

import logging
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.errors import OutputError
from iianet.inference.recording import BLOCK, Recording
from iianet.inference.windows import Samples
from iianet.run_folder import PARTIAL_SUFFIX
from iianet.wording import readable_bytes

FULL_SCALE = 1 << 15
"""What libsndfile divides whole numbers of 16 bits by when it reads them."""
FLOAT_BYTES, PCM_BYTES = 4, 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WavForm:
    """What the wavs of estimates are like.

    Attributes:
        rate: Hz.
        num_samples: Samples.
        is_float: Whether they hold floats in any case; else whole numbers of 16 bits, where those suffice.
    """

    rate: int
    num_samples: int
    is_float: bool

    @classmethod
    def like(cls, recording: Recording, own_rate: bool) -> "WavForm":
        """As a mixture is: floats where it has floats; at 16 kHz, or at its own rate."""
        return cls(
            rate=recording.rate if own_rate else SAMPLE_RATE,
            num_samples=recording.length if own_rate else recording.num_samples,
            is_float=recording.is_float,
        )

    @property
    def seconds(self) -> float:
        """Length."""
        return self.num_samples / self.rate

    @property
    def most_bytes(self) -> int:
        """Bytes on disk, at most, until it is written."""
        return self.num_samples * (FLOAT_BYTES if self.is_float else FLOAT_BYTES + PCM_BYTES)


class EstimateWav:
    """Takes an estimate piece by piece; made by `writing`.

    Attributes:
        path: Path of the wav, which is not there before all is written.
        form: What it is to be like.
        subtype: What it is, in libsndfile's names, when it is written.
        lowest: Smallest sample that was written.
        highest: Largest sample that was written.
    """

    def __init__(self, path: Path, form: WavForm, file: soundfile.SoundFile) -> None:
        self.path = path
        self.form = form
        self.subtype = "FLOAT"
        self.lowest = self.highest = 0.0
        self._file = file
        self._left = form.num_samples
        self._resampler = None
        if form.rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(SAMPLE_RATE, form.rate, 1, dtype="float32")

    @property
    def decibels(self) -> float:
        """Its peak, dB of full scale; minus infinity where it is silent."""
        peak = max(self.highest, -self.lowest)
        return 20 * math.log10(peak) if peak else -math.inf

    @property
    def clips(self) -> bool:
        """Whether whole numbers of 16 bits are too small for it."""
        return round(self.highest * FULL_SCALE) >= FULL_SCALE or round(self.lowest * FULL_SCALE) < -FULL_SCALE

    def write(self, samples: Samples) -> None:
        """Write the samples that follow, at 16 kHz."""
        self._put(self._resampler.resample_chunk(np.ascontiguousarray(samples)) if self._resampler else samples)

    def finish(self) -> None:
        """Write what is left; there may be a sample too many or too few where it was resampled twice."""
        if self._resampler:
            self._put(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
            self._put(np.zeros(self._left, np.float32))
        assert self._left == 0

    def _put(self, samples: Samples) -> None:
        samples = samples[: self._left]
        self._left -= len(samples)
        self.lowest = min(self.lowest, float(samples.min(initial=0)))
        self.highest = max(self.highest, float(samples.max(initial=0)))
        self._file.write(samples)


@contextmanager
def writing(path: Path, form: WavForm) -> Iterator[EstimateWav]:
    """Write an estimate beside its place, and rename it when the block ends well.

    Samples are kept as floats until all are known; only then can whole numbers be seen to suffice. Nothing is clipped,
    and nothing is scaled.

    Args:
        path: Path of the wav; its folder exists.
        form: What it is to be like.

    Raises:
        OutputError: The file system does not take it; what it took is deleted.
    """
    own = secrets.token_hex(8)  # so that two commands write into one folder, and none into what the other writes
    partial, whole = (path.with_name(f"{path.name}.{own}-{kind}{PARTIAL_SUFFIX}") for kind in ("float", "pcm"))
    try:
        with _created(partial, form.rate, "FLOAT") as file:
            wav = EstimateWav(path, form, file)
            yield wav
            wav.finish()
        if not form.is_float and not wav.clips:
            _convert(partial, whole, form.rate)
            wav.subtype = "PCM_16"
        elif not form.is_float:
            logger.warning(
                "%s: peaks %.1f dB above full scale, which whole numbers of 16 bits would clip; written as floats",
                path,
                wav.decibels,
            )
        (whole if wav.subtype == "PCM_16" else partial).replace(path)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
    finally:
        for each in (partial, whole):
            with suppress(OSError):
                each.unlink(missing_ok=True)


def refuse_without_room(folder: Path, room: int) -> None:
    """Make a folder for wavs. Raises OutputError where that fails, or `room` bytes do not go there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except (OSError, ValueError) as error:
        raise _unwritable(folder, str(getattr(error, "strerror", None) or error)) from error
    if free < room:
        raise OutputError(
            f"{folder}: its disk has {readable_bytes(free)} left; expected {readable_bytes(room)} for the estimates. "
            "Make room, or let them go elsewhere: --out DIR"
        )


@contextmanager
def _created(path: Path, rate: int, subtype: str) -> Iterator[soundfile.SoundFile]:
    """Create a wav, and sync it at the end. Raises OSError where the file system does not take it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with soundfile.SoundFile(
            descriptor, "w", samplerate=rate, channels=1, format="WAV", subtype=subtype, closefd=False
        ) as file:
            yield file
        os.fsync(descriptor)
    except soundfile.SoundFileError as error:  # libsndfile does not say why
        free = readable_bytes(shutil.disk_usage(path.parent).free)
        raise OSError(None, f"a write failed; its disk has {free} left", str(path)) from error
    finally:
        os.close(descriptor)


def _convert(source: Path, target: Path, rate: int) -> None:
    """Copy a wav of floats into one of whole numbers of 16 bits."""
    with soundfile.SoundFile(source) as floats, _created(target, rate, "PCM_16") as file:
        while len(block := floats.read(BLOCK, dtype="float32")):
            file.write(np.rint(block * FULL_SCALE).astype(np.int16))


def _unwritable(path: Path, reason: str) -> OutputError:
    return OutputError(
        f"{path}: cannot be written: {reason}. Make room, or make the folder writable; or let estimates go elsewhere: "
        "--out DIR"
    )
