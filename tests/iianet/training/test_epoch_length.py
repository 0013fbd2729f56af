"""Limits and intervals of an epoch."""

import pytest

from iianet.config.sections import TrainingSection
from iianet.errors import ConfigError
from iianet.training.epoch_length import limited, refuse_unfit_interval


@pytest.mark.parametrize(("limit", "left"), [(None, 10), (3, 3), (99, 10), (0.25, 2), (1.0, 10), (1, 1)])
def test_a_limit_is_a_count_or_a_share(limit: float | None, left: int) -> None:
    assert limited(10, limit, "limit_train_batches") == left


def test_a_limit_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"limit_val_batches is 0.05, and of 10 batches that leaves none"):
        limited(10, 0.05, "limit_val_batches")


@pytest.mark.parametrize(
    ("interval", "accumulated", "fits"),
    [
        (None, 4, True),
        (10, 4, True),  # the last step of an epoch has what is left
        (1.0, 4, True),
        (8, 4, True),
        (0.5, 5, True),
        (0.5, 4, False),
        (6, 4, False),
        (11, 1, False),
    ],
)
def test_validation_comes_within_an_epoch_and_between_steps(
    interval: float | None, accumulated: int, fits: bool
) -> None:
    training = TrainingSection(val_check_interval=interval, accumulate_grad_batches=accumulated)
    if fits:
        refuse_unfit_interval(training, 10)
    else:
        with pytest.raises(ConfigError, match="val_check_interval"):
            refuse_unfit_interval(training, 10)
