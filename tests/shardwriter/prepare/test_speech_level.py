"""Active speech level: of signals whose level is known by calculation, and of some that VOICEBOX measured."""

from collections.abc import Callable

import numpy as np
import pytest

from shardwriter.prepare.speech_level import (
    LEVELS,
    Floats,
    _active_samples,
    _published_level,
    envelope,
    half_rate,
    high_passed,
    published_level,
    standard_level,
)

RATE = 16_000


def tone(seconds: float, frequency: float = 1000.0, amplitude: float = 0.5, rate: int = RATE) -> Floats:
    return np.asarray(amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate))


def decibels(power: float, reference: float) -> float:
    return float(10 * np.log10(power / reference))


@pytest.fixture(params=list(LEVELS))
def level(request: pytest.FixtureRequest) -> Callable[[Floats], float]:
    return LEVELS[request.param]


@pytest.mark.parametrize("amplitude", [0.9, 0.5, 0.05])
def test_a_steady_tone_has_the_level_of_its_power(level: Callable[[Floats], float], amplitude: float) -> None:
    assert decibels(level(tone(10, amplitude=amplitude)), amplitude**2 / 2) == pytest.approx(0, abs=0.2)


def test_pauses_do_not_count(level: Callable[[Floats], float]) -> None:
    """A tone that is on half of the time has half of the power, and nearly the level of the steady one.

    Active is what is on, the hangover of 0.2 s, and the time by which the envelope falls later than it rises: it is
    1 - (1 + x) exp(-x) of its height x = t / 0.03 s after the tone began, and (1 + x) exp(-x) after its end. The
    threshold is 15.9 dB below the level, which is 0.178 of its height: reached at x = 0.73, left at x = 3.24.
    """
    on = 2.0
    signal = np.tile(np.concatenate([tone(on), np.zeros(round(on * RATE))]), 4)
    active = on + 0.2 + (3.24 - 0.73) * 0.03
    assert decibels(level(signal), 0.125) == pytest.approx(10 * np.log10(on / active), abs=0.15)
    assert decibels(float((signal**2).mean()), 0.125) == pytest.approx(-3, abs=0.02)


def test_silence_after_speech_changes_nothing_but_its_hangover(level: Callable[[Floats], float]) -> None:
    speech = tone(4)
    levels = [level(np.append(speech, np.zeros(round(seconds * RATE)))) for seconds in (1, 20)]
    assert decibels(*levels) == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize("gain", [0.5, 0.25, 0.1, 0.01])
def test_a_quieter_recording_is_quieter_by_as_much(gain: float) -> None:
    """Where thresholds follow the recording; those of the standard stay where they are, 6 dB apart."""
    signal = tone(1) * (np.arange(RATE) % 8000 < 3000) + 0.001 * tone(1, 333)
    assert decibels(published_level(gain * signal), gain**2 * published_level(signal)) == pytest.approx(0, abs=0.05)
    assert decibels(standard_level(gain * signal), gain**2 * standard_level(signal)) == pytest.approx(0, abs=0.5)


def test_published_levels_do_not_hear_hum_and_those_of_the_standard_do() -> None:
    hum = tone(5, 50.0, 0.4)
    voice = tone(5, 1000.0, 0.4)
    assert decibels(published_level(voice + hum), published_level(voice)) == pytest.approx(0, abs=0.01)
    assert decibels(standard_level(voice + hum), standard_level(voice)) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("silence", [np.zeros(RATE), np.zeros(1), np.full(RATE, 1e-300)])
def test_silence_has_no_level(level: Callable[[Floats], float], silence: Floats) -> None:
    assert level(silence) == 0


@pytest.mark.parametrize("num_samples", [1, 2, 3, 40, 41, 1000])
def test_short_recordings_have_a_level(level: Callable[[Floats], float], num_samples: int) -> None:
    found = level(np.full(num_samples, 0.5))
    assert found > 0 if num_samples > 3 else found >= 0  # the standard's lowest threshold is not reached so soon


def test_levels_are_those_of_voicebox() -> None:
    """activlev.m of 2017, run in Octave 7.3 on these signals of 8 kHz."""
    time = np.arange(32_000) / 8000
    hum, voice = 0.1 * np.sin(2 * np.pi * 60 * time), 0.3 * np.sin(2 * np.pi * 440 * time)
    found = [
        _published_level(voice * (np.sin(2 * np.pi * 0.7 * time) > 0) + 0.02 * np.sin(2 * np.pi * 1330 * time) + hum),
        _published_level(0.001 * np.cos(2 * np.pi * 700 * time) * (time % 1 < 0.3)),
        _published_level(np.exp(-3 * time) * np.sin(2 * np.pi * 500 * time)),
        _published_level(0.5 * np.sin(2 * np.pi * 440 * time[:8000])),
    ]
    expected = [0.0317848610845268, 2.54581301395805e-07, 0.0726624921312008, 0.0977263758889595]
    assert found == pytest.approx(expected, rel=1e-10)


def test_what_is_too_quiet_for_the_standards_thresholds_is_active_as_a_whole() -> None:
    """But for the 0.04 s in which its envelope rises."""
    quiet = np.append(tone(1, amplitude=1.2e-4), tone(9, amplitude=0.6e-4))
    assert decibels(standard_level(quiet), float((quiet**2).mean())) == pytest.approx(0.02, abs=0.01)


def test_the_envelope_is_averaged_exponentially_twice() -> None:
    signal = np.random.default_rng(0).standard_normal(5000)
    decay = np.exp(-1 / (0.03 * RATE))
    first, second, expected = 0.0, 0.0, []
    for sample in np.abs(signal):
        first = decay * first + (1 - decay) * sample
        second = decay * second + (1 - decay) * first
        expected.append(second)
    assert envelope(signal, RATE) == pytest.approx(np.array(expected), rel=1e-11)


def test_what_follows_a_loud_sample_is_active_for_a_fifth_of_a_second() -> None:
    loudness = np.zeros(1000)
    loudness[[10, 20, 500]] = 1.0
    loudness[990] = 2.0
    window = 21  # the sample and 0.2 s after it, at 100 Hz
    expected = [10 + window + window + 10, 10, 0]  # of thresholds 1, 2 and 3
    assert _active_samples(loudness, np.array([1.0, 2.0, 3.0]), 100).tolist() == expected


@pytest.mark.parametrize(
    ("frequency", "gain"), [(100.0, 1.0), (1000.0, 1.0), (3000.0, 1.0), (5500.0, 0.0), (7500.0, 0.0)]
)
def test_half_the_rate_has_what_is_below_its_own_half(frequency: float, gain: float) -> None:
    signal = tone(1, frequency, 1.0)
    halved = half_rate(signal)
    assert len(halved) == RATE // 2
    kept = tone(1, frequency, 1.0)[::2]
    assert halved[100:-100] == pytest.approx(gain * kept[100:-100], abs=0.006)


def test_an_odd_sample_is_kept() -> None:
    assert len(half_rate(np.zeros(5))) == 3


@pytest.mark.parametrize(
    ("frequency", "lowest", "highest"),
    [(60.0, -80, -50), (200.0, -0.26, -0.24), (400.0, -0.02, 0.01), (3900.0, -0.001, 0.001)],
)
def test_the_high_pass_stops_what_is_below_200_hertz(frequency: float, lowest: float, highest: float) -> None:
    signal = tone(4, frequency, 1.0, 8000)
    heard = high_passed(signal, 8000, 2800)
    assert len(heard) == len(signal) + 2800
    assert lowest < decibels(float((heard[8000:32_000] ** 2).mean()), 0.5) < highest


def test_the_high_pass_looks_into_no_future() -> None:
    signal = np.zeros(16_000)
    signal[8000] = 1.0
    heard = high_passed(signal, 8000, 2800)
    assert np.abs(heard[:8000]).max() < 1e-14
    assert np.abs(heard[-100:]).max() < 1e-14
    assert heard[8000] > 0.7
