"""Figures of known signals are what arithmetic says; what has no figure says why, and hides no other."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from iianet.errors import ConfigError
from iianet.inference import metrics
from iianet.inference.metrics import Signals, columns_of, figures_of, refuse_missing_packages

RATE = 16_000
SPEECH = ("pesq", "stoi")


def orthogonal(num_samples: int = RATE) -> tuple[np.ndarray, np.ndarray]:
    """Two sounds of power 1 that have nothing in common, and no mean: whole periods of two sines."""
    time = np.arange(num_samples) / RATE
    return np.sqrt(2) * np.sin(2 * np.pi * 440 * time), np.sqrt(2) * np.sin(2 * np.pi * 1000 * time)


def heard(gain: float = 1.0, noise: float = 0.1, interferer: float = 0.5) -> Signals:
    """A target, a mixture in which the other voice has `interferer` of its level, and an estimate with less of it."""
    target, other = orthogonal()
    return Signals(mixture=target + interferer * other, target=target, estimate=gain * (target + noise * other))


def test_si_snr_is_the_ratio_of_target_and_rest_and_knows_no_gain() -> None:
    found = figures_of(heard(), ("si_snr",), False).values
    assert found["si_snr"] == pytest.approx(20.0, abs=1e-6)
    assert found["si_snri"] == pytest.approx(20.0 - 20 * np.log10(2), abs=1e-6)
    assert found["mixture_snr"] == pytest.approx(20 * np.log10(2), abs=1e-6)
    assert figures_of(heard(gain=0.01), ("si_snr",), False).values["si_snr"] == pytest.approx(20.0, abs=1e-6)


def test_a_constant_does_not_count_for_si_snr() -> None:
    shifted = heard()._replace(estimate=heard().estimate + 0.3)
    assert figures_of(shifted, ("si_snr",), False).values["si_snr"] == pytest.approx(20.0, abs=1e-6)


def filtered_noise() -> Signals:
    """An estimate that is the target through a short filter, with noise 20 dB below: SDR forgives the filter."""
    random = np.random.default_rng(0)
    target, noise, other = random.standard_normal((3, RATE))
    echo = np.convolve(target, [1.0, 0.0, 0.5, -0.3])[:RATE]
    noise *= 0.1 * np.sqrt(np.mean(echo**2))
    return Signals(mixture=target + other, target=target, estimate=echo + noise)


def test_sdr_forgives_a_short_filter_and_not_noise() -> None:
    found = figures_of(filtered_noise(), ("si_snr", "sdr"), False).values
    assert found["sdr"] == pytest.approx(20.0, abs=0.3), "512 taps fit a little of the noise, too"
    assert found["si_snr"] < 6
    assert found["sdri"] == pytest.approx(found["sdr"], abs=0.5), "the mixture is at 0 dB"


def test_the_swapped_sdr_is_a_column_of_its_own() -> None:
    swapped = figures_of(filtered_noise(), (), True).values
    there = filtered_noise()
    straight = figures_of(there._replace(target=there.estimate, estimate=there.target), ("sdr",), False).values
    assert swapped["sdr_published"] == straight["sdr"]
    assert swapped["sdr_published"] != pytest.approx(figures_of(there, ("sdr",), False).values["sdr"], abs=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": np.zeros(RATE)}, "the target is silent"),
        ({"estimate": np.full(RATE, 0.25)}, "the estimate is silent"),
        ({"estimate": np.full(RATE, np.nan)}, "the estimate holds values that are not finite"),
    ],
)
def test_silence_has_no_figure_and_says_so(change: dict[str, np.ndarray], reason: str) -> None:
    found = figures_of(heard()._replace(**change), ("si_snr", "sdr", *SPEECH), True)
    assert set(found.missing) >= {*columns_of(("si_snr", "sdr", *SPEECH), True)} - {"mixture_snr"}
    assert {found.missing[name] for name in ("si_snr", "sdri", "pesq", "estoi", "sdr_published")} == {reason}


def test_too_few_samples_for_sdr_leave_si_snr() -> None:
    target, other = orthogonal(400)
    found = figures_of(Signals(target + other, target, target + 0.1 * other), ("si_snr", "sdr"), False)
    assert "si_snri" in found.values
    assert found.missing == dict.fromkeys(("sdr", "sdri"), "400 samples are too few for SDR, which needs more than 512")


def test_equations_that_cannot_be_solved_leave_the_other_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsolvable(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setattr(metrics, "signal_distortion_ratio", unsolvable)
    found = figures_of(heard(), ("si_snr", "sdr"), False)
    assert {"si_snr", "si_snri"} <= found.values.keys()
    assert found.missing == dict.fromkeys(
        ("sdr", "sdri"), "SDR's equations cannot be solved: the target has too little sound"
    )


@pytest.mark.parametrize("metric", SPEECH)
def test_a_metric_without_its_package_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"--metrics {metric}: needs the package .*pip install -e '\.\[metrics\]'"):
        refuse_missing_packages(("si_snr", metric))
    refuse_missing_packages(("si_snr", "sdr"))


def voice(num_samples: int) -> np.ndarray:
    """Something that PESQ takes for speech: noise that comes in syllables."""
    time = np.arange(num_samples) / RATE
    noise = np.random.default_rng(0).standard_normal(num_samples)
    return 0.1 * noise * (np.sin(2 * np.pi * 2 * time) > 0)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pesq") is None or find_spec("pystoi") is None, reason="needs the extra [metrics]")
def test_speech_metrics_rank_estimates_and_say_what_they_cannot_take() -> None:
    target, noise = voice(3 * RATE), 0.1 * np.random.default_rng(1).standard_normal(3 * RATE)
    near = figures_of(Signals(target + noise, target, target + 0.05 * noise), SPEECH, False).values
    far = figures_of(Signals(target + noise, target, target + noise), SPEECH, False).values
    for name in ("pesq", "stoi", "estoi"):
        assert near[name] > far[name]
    short = figures_of(Signals(target[:300] + noise[:300], target[:300], target[:300]), SPEECH, False)
    assert short.missing["pesq"].startswith("PESQ: Buffer needs to be at least")
    assert short.missing["stoi"].startswith("STOI: ")
