"""Wavs of an utterance, read to be stored: as integers as they are, or as float32; and what their headers say."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.errors import AudioError
from iianet.regular_file import open_regular
from shardwriter.format.sample import AUDIO_DTYPES

_DTYPES = {"PCM_S8": "int16", "PCM_U8": "int16", "PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32"}
"""Smallest that holds what a wav of this kind holds; all others are floats."""


def read_audio(data_root: Path, entries: Sequence[Mapping[str, Any]]) -> npt.NDArray[Any]:
    """Read the wavs of an utterance's audio list.

    Args:
        data_root: Folder that paths are relative to.
        entries: `mixture`, `source` and `num_samples` of each.

    Returns:
        1-D, int16, int32 or float32: for each entry the samples of its source, then those of its mixture.

    Raises:
        AudioError: One is missing, damaged, too short, not mono at 16 kHz, or cannot be stored without loss.
    """
    paths = [(data_root / entry[name], entry["num_samples"]) for entry in entries for name in ("source", "mixture")]
    dtypes = [stored_dtype(path) for path, _ in paths]
    joint = np.result_type(*dtypes).name if dtypes else "int16"
    if joint not in AUDIO_DTYPES:
        raise AudioError(
            f"{paths[dtypes.index('int32')][0]}: is int32, another wav of its utterance is float32, and no one type "
            "holds both without loss; convert them to one, or use --audio path"
        )
    parts = [_read(path, num_samples, joint) for path, num_samples in paths]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int16)


def stored_dtype(path: Path) -> str:
    """The dtype that holds what a wav holds. Raises AudioError where it cannot be read, or none does."""
    with open_wav(path) as wav:
        subtype = wav.subtype
    if subtype == "DOUBLE":
        raise AudioError(f"{path}: has 64-bit floats, which float32 cannot hold; convert it, or use --audio path")
    return _DTYPES.get(subtype, "float32")


def _read(path: Path, num_samples: int, dtype: str) -> npt.NDArray[Any]:
    with open_wav(path) as wav:
        _refuse_other(path, wav, num_samples)
        samples: npt.NDArray[Any] = wav.read(num_samples, dtype=dtype)
    if len(samples) != num_samples:
        raise AudioError(f"{path}: ends after {len(samples):,} samples of {num_samples:,}; it was cut, copy it again")
    return samples


@contextmanager
def open_wav(recording: Path | bytes, name: str | None = None) -> Iterator[soundfile.SoundFile]:
    """Open a wav by its path or content; messages call it `name`, by default its path.

    Raises:
        AudioError: It is missing, no regular file, or libsndfile cannot read it, here or in the block.
    """
    try:
        if isinstance(recording, bytes):
            with soundfile.SoundFile(io.BytesIO(recording)) as wav:
                yield wav
        else:
            descriptor = open_regular(recording)
            try:
                with soundfile.SoundFile(descriptor, closefd=False) as wav:
                    yield wav
            finally:
                os.close(descriptor)
    except FileNotFoundError as error:
        raise AudioError(f"{recording!s}: no such file; copy it there, or correct data_root or the lists") from error
    except OSError as error:
        raise AudioError(
            f"{name or recording!s}: cannot be read ({error.strerror or error}); copy it there anew, or leave it out"
        ) from error
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error))  # the whole message has a file's name in it
        raise AudioError(f"{name or recording!s}: cannot be read ({reason.rstrip('.')})") from error


def _refuse_other(path: Path, wav: soundfile.SoundFile, num_samples: int) -> None:
    shape = (min(wav.frames, num_samples), *((wav.channels,) if wav.channels > 1 else ()))
    if wav.samplerate != SAMPLE_RATE or shape != (num_samples,):
        raise AudioError(
            f"{path}: {shape} samples at {wav.samplerate} Hz; expected mono at {SAMPLE_RATE} Hz and at least "
            f"{num_samples} samples, as its manifest says"
        )


def wav_problems(wavs: Iterable[tuple[Path, int]]) -> list[str]:
    """What is wrong with some wavs by their headers: each with the samples that it must have at least."""
    problems = []
    for path, num_samples in wavs:
        try:
            with open_wav(path) as wav:
                _refuse_other(path, wav, num_samples)
        except AudioError as error:
            problems.append(str(error))
    return problems
