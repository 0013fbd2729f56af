"""Active speech level by method B of ITU-T P.56: energy divided by the time in which somebody speaks.

Envelope: the rectified signal, averaged exponentially twice, each with a time constant of 0.03 s. For each of several
thresholds, the time in which the envelope is above it, and 0.2 s after it, is taken for active; the level is the energy
divided by that time. The level that is 15.9 dB above its threshold is the active speech level, interpolated in dB
between two thresholds.

The standard leaves things open that change the result by up to 2.2 dB on real recordings:

    p56         the recording as it is; 15 thresholds with a factor of 2 between, below full scale, for 16 bits
    published   as create_wav_2_speakers.m of wsj0-2mix does, by which LRS3's published mixtures, and others like them,
                were made: the recording at 8 kHz, above 200 Hz (standard: 200 to 5500 Hz), with 0.35 s of silence
                after it; 20 thresholds with a factor of 2 in power between, below the envelope's peak

Sources: ITU-T P.56 (12/2011); for `published` what VOICEBOX's activlev does (version of 2017), whose results on real
recordings this repeats to 1e-12 dB.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from iianet.encoder.mouth import SAMPLE_RATE

Floats = npt.NDArray[np.float64]

TIME_CONSTANT = 0.03
"""Of each of the two averages, seconds."""
HANGOVER = 0.2
"""Time that counts as active after the envelope fell below a threshold, seconds."""
MARGIN = 15.9
"""By which the active level is above its threshold, dB."""
STANDARD_THRESHOLDS = 15
PUBLISHED_THRESHOLDS = 20
PUBLISHED_RATE = 8_000
"""Rate at which published mixtures measured, Hz: half of ours."""
SILENCE_AFTER = 0.35
"""Silence that published mixtures measured with each recording, seconds."""
LOWEST = 200.0
"""Frequency that the high pass lets through less 0.25 dB, Hz."""
PASS_RIPPLE, STOP_DAMPING, FILTER_ORDER = 0.25, 50.0, 5
"""Of the high pass: damping at `LOWEST` and damping of what is stopped, dB; its order."""
HALF_WIDTH, KAISER_BETA = 20, 5.0
"""Of the filter before every second sample is dropped: taps on each side, and its window, as MATLAB's `resample`."""


def standard_level(signal: Floats) -> float:
    """Level as the standard has it.

    Args:
        signal: Of 16 kHz, full scale 1, `(num_samples,)`.

    Returns:
        Mean power while somebody speaks, of full scale 1; 0 where nobody does.
    """
    thresholds: Floats = np.exp2(-np.arange(1.0, STANDARD_THRESHOLDS + 1))
    return _level(signal, _active_samples(envelope(signal, SAMPLE_RATE), thresholds, SAMPLE_RATE), thresholds)


def published_level(signal: Floats) -> float:
    """Level as published mixtures were made with; otherwise as `standard_level`."""
    return _published_level(half_rate(signal))


def _published_level(signal: Floats) -> float:
    """The same of a signal of 8 kHz."""
    heard = high_passed(signal, PUBLISHED_RATE, int(np.ceil(SILENCE_AFTER * PUBLISHED_RATE)))
    loudness = envelope(heard, PUBLISHED_RATE)
    peak = int(np.frexp(loudness.max(initial=0.0) ** 2)[1])
    thresholds: Floats = np.sqrt(np.exp2(peak - np.arange(1.0, PUBLISHED_THRESHOLDS + 1)))
    return _level(heard, _active_samples(loudness, thresholds, PUBLISHED_RATE), thresholds)


LEVELS: dict[str, Callable[[Floats], float]] = {"published": published_level, "p56": standard_level}
"""Ways to measure, by the names that prepare-mixtures has for them."""


def envelope(signal: Floats, rate: int) -> Floats:
    """The rectified signal, averaged twice, `(num_samples,)`."""
    decay = float(np.exp(-1 / (TIME_CONSTANT * rate)))
    return _averaged(_averaged(np.abs(signal), decay), decay)


def _averaged(signal: Floats, decay: float) -> Floats:
    """Exponential average `a[n] = decay a[n-1] + (1 - decay) signal[n]`, by doubling what is summed: no loop over
    samples, and the same bits whatever library multiplies matrices."""
    average = (1 - decay) * signal
    step, factor = 1, decay
    while step < len(average) and factor > np.finfo(np.float64).tiny:
        average[step:] = average[step:] + factor * average[:-step]
        step, factor = 2 * step, factor * factor
    return average


def _active_samples(loudness: Floats, thresholds: Floats, rate: int) -> npt.NDArray[np.int64]:
    """Samples at which an envelope reaches each threshold, or has within the hangover before, `(thresholds,)`."""
    window = int(np.ceil(HANGOVER * rate)) + 1

    def samples(threshold: np.float64) -> int:
        places = np.flatnonzero(loudness >= threshold)
        return int(np.minimum(np.diff(places, append=len(loudness)), window).sum())

    return np.array([samples(threshold) for threshold in thresholds])


def _level(signal: Floats, active: npt.NDArray[np.int64], thresholds: Floats) -> float:
    """Level where it is `MARGIN` above its threshold.

    Args:
        signal: Whose energy counts, `(num_samples,)`.
        active: Samples that each threshold takes for active, `(thresholds,)`.
        thresholds: Amplitudes, falling.
    """
    energy, reached = float((signal * signal).sum()), active > 0
    if not energy or not reached.any():
        return 0.0
    levels = 10 * np.log10(energy / active[reached])
    above = levels - 20 * np.log10(thresholds[reached]) - MARGIN
    crossings = np.flatnonzero((above[:-1] < 0) & (above[1:] >= 0))
    if not len(crossings):
        return float(10 ** (levels[-1 if above[-1] < 0 else 0] / 10))
    place = int(crossings[0])
    share = above[place] / (above[place] - above[place + 1])
    return float(10 ** ((levels[place] + share * (levels[place + 1] - levels[place])) / 10))


def half_rate(signal: Floats) -> Floats:
    """Every second sample of the signal, below a quarter of its rate, as MATLAB's `resample` does it:
    `(ceil(num_samples / 2),)`."""
    taps = np.arange(-HALF_WIDTH, HALF_WIDTH + 1)
    low_pass = np.sinc(taps / 2) * np.kaiser(len(taps), KAISER_BETA)
    return np.convolve(signal, low_pass / low_pass.sum())[HALF_WIDTH : HALF_WIDTH + len(signal) : 2]


def high_passed(signal: Floats, rate: int, silence: int) -> Floats:
    """The signal and some samples of silence after it, without what is below `LOWEST`.

    The filter is Chebyshev's second kind, made digital by the bilinear transform. It is multiplied in the frequency
    domain: its response has died away, to the last bit, before the silence is over.
    """
    length = len(signal) + silence
    size = 1 << (length + silence).bit_length()
    turn = np.exp(2j * np.pi * np.fft.rfftfreq(size))
    response = np.ones(len(turn), dtype=np.complex128)
    for zero, pole in zip(*_digital_zeros_and_poles(rate), strict=True):
        response *= (turn - zero) / (turn - pole) * (1 + pole) / (1 + zero)  # 1 at the highest frequency
    return np.fft.irfft(np.fft.rfft(signal, size) * response, size)[:length]


def _digital_zeros_and_poles(rate: int) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.complex128]]:
    angles = np.pi * (2 * np.arange(FILTER_ORDER) + 1) / (2 * FILTER_ORDER)
    ripple = 1 / np.sqrt(10 ** (STOP_DAMPING / 10) - 1)
    edge = 1 / np.cosh(np.arccosh(1 / (ripple * np.sqrt(10 ** (PASS_RIPPLE / 10) - 1))) / FILTER_ORDER)
    spread = np.arcsinh(1 / ripple) / FILTER_ORDER
    zeros = 1j * edge * np.cos(angles)
    poles = edge * (-np.sinh(spread) * np.sin(angles) + 1j * np.cosh(spread) * np.cos(angles))
    warped = np.tan(np.pi * LOWEST / rate)
    return (1 + warped * zeros) / (1 - warped * zeros), (1 + warped * poles) / (1 - warped * poles)
