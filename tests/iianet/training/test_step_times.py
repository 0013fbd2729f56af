"""Sums over training steps."""

import pytest

from iianet.training.step_times import Spent, StepTimes


def test_a_share_is_of_all_steps_and_not_a_mean_of_shares() -> None:
    times = StepTimes()
    times.add(Spent(seconds=9.0, waited=0.0, bytes_read=10), examples=9)
    times.add(Spent(seconds=1.0, waited=1.0, bytes_read=20), examples=9)
    assert times.epoch.wait_share == pytest.approx(0.1)
    assert times.epoch.bytes_read == 30
    assert times.per_second == pytest.approx(0.9 * 1 + 0.1 * 9)


def test_the_run_is_the_sum_of_its_epochs() -> None:
    times = StepTimes()
    for waited in (1.0, 3.0):
        times.add(Spent(seconds=10.0, waited=waited), examples=1)
        times.end_epoch(times.epoch)
        assert times.epoch == Spent()
    assert times.run.wait_share == pytest.approx(0.2)
    assert str(times.run) == "waited for data 20.0 % of 20 s, read 0 GB"


def test_no_steps_waited_for_nothing() -> None:
    assert Spent().wait_share == 0
