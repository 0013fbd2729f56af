"""One mixture of two utterances: as wsj0-2mix's create_wav_2_speakers.m makes them in its mode `min`, at 16 kHz."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.errors import AudioError
from shardwriter.prepare.mixing_list import Pair
from shardwriter.prepare.output import writing
from shardwriter.prepare.recordings import KINDS, open_recording
from shardwriter.prepare.speech_level import LEVELS, Floats

PEAK = 0.9
"""Loudest sample of a mixture and its two sources, of full scale."""
FULL_SCALE = 1 << 15
HEADER_BYTES, SAMPLE_BYTES = 44, 2
"""Of a wav of 16 bits, as libsndfile writes it."""

Wavs = Mapping[str, npt.NDArray[np.int16]]
"""Samples of mix, s1 and s2, `(num_samples,)` each."""


def mix(pair: Pair, level: str) -> Wavs:
    """Mix two utterances.

    Each is divided by the root of its active speech level and brought to its SNR. Both are cut to the shorter, and
    they and their sum are scaled alike.

    Args:
        pair: Their wavs and SNRs.
        level: How the active speech level is measured, see `LEVELS`.

    Raises:
        AudioError: A wav cannot be read, is not mono at 16 kHz, or nobody speaks in it.
    """
    voices = [_voice(wav, snr, level) for wav, snr in zip(pair.wavs, pair.snrs, strict=True)]
    num_samples = min(map(len, voices))
    first, second = (voice[:num_samples] for voice in voices)
    signals = {"mix": first + second, "s1": first, "s2": second}
    peak = max(float(np.abs(signal).max()) for signal in signals.values())
    return {kind: _as_int16(1 / peak * PEAK * signal) for kind, signal in signals.items()}


def _voice(path: Path, snr: float, level: str) -> Floats:
    """An utterance at its level, `(num_samples,)`."""
    with open_recording(path) as wav:
        samples: Floats = wav.read(dtype="float64")
    power = LEVELS[level](samples)
    if not 0 < power < np.inf:
        found = "holds what are no numbers" if np.isnan(samples).any() or np.isinf(samples).any() else "is silent"
        raise AudioError(f"{path}: {found}; expected speech. Leave its lines out of the list, or copy it again")
    voice: Floats = 10 ** (snr / 20) * samples / np.sqrt(power)
    return voice


def _as_int16(signal: Floats) -> npt.NDArray[np.int16]:
    """Samples of 16 bits; halves go away from zero, as in MATLAB."""
    return np.copysign(np.floor(np.abs(signal) * FULL_SCALE + 0.5), signal).astype(np.int16)


def num_samples_of(pair: Pair) -> int:
    """Length of a mixture by the headers of its utterances. Raises AudioError as `mix` does for those."""
    lengths = []
    for path in pair.wavs:
        with open_recording(path) as wav:
            lengths.append(int(wav.frames))
    return min(lengths)


def is_made(pair: Pair, folder: Path, num_samples: int) -> bool:
    """Whether all three wavs of a mixture are in their folders below `folder`, as long as they are to be."""
    size = HEADER_BYTES + SAMPLE_BYTES * num_samples
    try:
        return all((folder / kind / pair.name).stat().st_size == size for kind in KINDS)
    except OSError:
        return False


def write_mixture(wavs: Wavs, folder: Path, name: str) -> None:
    """Write the three wavs of a mixture into their folders below `folder`. Raises OutputError where one cannot be."""
    for kind, samples in wavs.items():
        content = io.BytesIO()
        soundfile.write(content, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        with writing(folder / kind / name) as stream:
            stream.write(content.getbuffer())
