"""How many batches an epoch has and after how many of them validation comes, as the training section sets them."""

from iianet.config.sections import TrainingSection
from iianet.errors import ConfigError


def limited(num_batches: int, limit: float | None, key: str) -> int:
    """Batches left of `num_batches` by a limit: a count, or a share of them.

    Raises:
        ConfigError: None is left.
    """
    if limit is None:
        return num_batches
    left = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    if left == 0:
        raise ConfigError(
            f"training.{key} is {limit}, and of {num_batches} batches that leaves none; give at least "
            f"{1 / num_batches:.2g}, or a count"
        )
    return left


def refuse_unfit_interval(training: TrainingSection, num_batches: int) -> None:
    """Raise ConfigError where validation does not fit into an epoch of `num_batches`, or would come between two batches
    of one optimizer step: no run could resume exactly from a checkpoint saved there, since it holds no gradients."""
    interval, accumulated = training.val_check_interval, training.accumulate_grad_batches
    if interval is None:
        return
    batches = interval if isinstance(interval, int) else max(1, int(num_batches * interval))
    if batches > num_batches:
        raise ConfigError(
            f"training.val_check_interval is {batches} batches, and an epoch has {num_batches}; expected at most that"
        )
    if batches % accumulated and batches < num_batches:
        raise ConfigError(
            f"training.val_check_interval is {interval}, which is every {batches} batches, and "
            f"training.accumulate_grad_batches makes a step of {accumulated}; expected a multiple of that"
        )
