"""The mean that validation is judged by."""

import math

import pytest
import torch

from iianet.training.weighted_mean import WeightedMean


def mean(*batches: tuple[list[float], list[float]]) -> float:
    metric = WeightedMean()
    for values, weights in batches:
        metric.update(torch.tensor(values), torch.tensor(weights))
    return float(metric.compute())


def test_every_value_counts_by_its_weight() -> None:
    assert mean(([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]), ([10.0], [1.0])) == pytest.approx(4)
    assert mean(([1.0, 2.0], [3.0, 1.0])) == pytest.approx(1.25)


def test_rows_of_weight_0_do_not_count_whatever_they_hold() -> None:
    assert mean(([5.0, float("nan")], [1.0, 0.0])) == 5


def test_what_is_not_finite_is_not_left_out() -> None:
    assert math.isnan(mean(([float("nan"), -20.0], [1.0, 1.0])))


def test_the_mean_of_nothing_is_nan() -> None:
    assert math.isnan(mean(([5.0], [0.0])))
