"""Windows lie evenly, and what is joined of them is what it would be without windows."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from iianet.errors import AudioError
from iianet.inference.windows import FADING, OVERLAPPING, SHORTEST, OverlapAdd, Samples, Windows

SPF = 40
"""Samples of a frame, so that recordings are short."""
LENGTH = 20
NUM_SAMPLES = [1, SPF, 799, 800, 801, 802, 1600, 3777, 8000]


def noise(num_samples: int) -> Samples:
    return np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)


def blocks(signal: Samples, size: int) -> list[Samples]:
    return [signal[start : start + size] for start in range(0, len(signal), size)]


def joined(windows: Windows, estimates: list[torch.Tensor]) -> torch.Tensor:
    adder = OverlapAdd(windows)
    return torch.cat([adder.add(estimate) for estimate in estimates], 1)


@pytest.mark.parametrize("length", [SHORTEST, 17, 25, 50, 200])
@pytest.mark.parametrize("times", [0.3, 1, 1.01, 1.5, 1.76, 2.3, 7.9])
def test_windows_cover_a_recording_evenly_and_no_fade_meets_another(length: int, times: float) -> None:
    num_samples = int(times * length * SPF) - 1
    windows = Windows.over(num_samples, SPF, length)
    assert windows.samples(0).start == 0 and windows.samples(len(windows.starts) - 1).stop == num_samples
    steps = [later - start for start, later in pairwise(windows.starts)]
    assert all(0 < step <= length * (1 - OVERLAPPING) for step in steps)
    assert not steps or max(steps) - min(steps) <= 1
    assert all(later - fade >= windows.fade for fade, later in pairwise(windows.fades))
    context = int(length * (OVERLAPPING - FADING) / 2) - 1
    for number, fade in enumerate(windows.fades):  # in both of its windows, with context on either side
        assert fade - windows.starts[number + 1] >= context
        assert windows.starts[number] + length - (fade + windows.fade) >= context


def test_a_recording_no_longer_than_a_window_is_one() -> None:
    assert Windows.over(LENGTH * SPF, SPF, LENGTH).starts == (0,)
    assert len(Windows.over(LENGTH * SPF + 1, SPF, LENGTH).starts) == 2


@pytest.mark.parametrize("num_samples", NUM_SAMPLES)
@pytest.mark.parametrize("size", [7, 1000, 10_000])
def test_windows_that_are_joined_give_the_recording_back(num_samples: int, size: int) -> None:
    signal, windows = noise(num_samples), Windows.over(num_samples, SPF, LENGTH)
    cut = list(windows.cut(blocks(signal, size)))
    assert [len(window) for window in cut] == [
        windows.samples(number).stop - windows.samples(number).start for number in range(len(windows.starts))
    ]
    assert np.array_equal(joined(windows, [window[None] for window in cut])[0].numpy(), signal)


@pytest.mark.parametrize("num_samples", NUM_SAMPLES)
def test_weights_sum_to_one_and_a_sample_comes_from_two_windows_at_most(num_samples: int) -> None:
    windows = Windows.over(num_samples, SPF, LENGTH)
    lengths = [windows.samples(number).stop - windows.samples(number).start for number in range(len(windows.starts))]
    weights = torch.cat(
        [
            joined(windows, [torch.full((1, length), float(number == own)) for number, length in enumerate(lengths)])
            for own in range(len(lengths))
        ]
    )  # (windows, samples)
    torch.testing.assert_close(weights.sum(0), torch.ones(num_samples), rtol=0, atol=1e-6)
    assert weights.min() >= 0 and (weights > 0).sum(0).max() <= 2


def test_a_fade_has_no_step() -> None:
    windows = Windows.over(1200, SPF, LENGTH)
    rise = joined(windows, [torch.zeros(1, 800), torch.ones(1, 800)])[0]
    fade = windows.fades[0] * SPF, (windows.fades[0] + windows.fade) * SPF
    assert not rise[: fade[0]].any() and (rise[fade[1] :] == 1).all()
    assert (rise.diff() >= 0).all() and rise.diff().max() < 2 / (fade[1] - fade[0])


@pytest.mark.parametrize("others", [2399, 2401, 800, 0, 9000])
def test_a_recording_that_changed_meanwhile_is_refused(others: int) -> None:
    with pytest.raises(AudioError, match=rf"2,400 samples at first, and then {others:,}; run again"):
        list(Windows.over(2400, SPF, LENGTH).cut(blocks(noise(others), 500)))
