"""State of the Trainer's loops that has no public name in Lightning: whether a validation is due.

Lightning 2.6 saves within a training step or within validation, but forgets on resume that a validation was due or
running, and skips it; from an epoch's last step it skips the end of that epoch and the start of the next too.
"""

import pytorch_lightning as pl
from pytorch_lightning.loops.evaluation_loop import RestartStage


def validation_follows(trainer: pl.Trainer) -> bool:
    """Within on_train_batch_end and on_train_epoch_end: whether validation comes right after that batch."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def epoch_is_over(trainer: pl.Trainer) -> bool:
    """Whether the latest batch was an epoch's last."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def is_last_validation(trainer: pl.Trainer) -> bool:
    """Within validation: whether no other one follows in this epoch. The last one need not be at the epoch's end."""
    assert trainer.val_check_batch is not None
    next_one = trainer.fit_loop.batch_idx + 1 + trainer.val_check_batch
    return epoch_is_over(trainer) or next_one > trainer.num_training_batches


def validate_again(trainer: pl.Trainer) -> None:
    """Within on_train_start of a run that resumes where a validation was due: validate first, over all batches."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    total, current = loop.batch_progress.total, loop.batch_progress.current
    for stage in vars(current):
        setattr(total, stage, getattr(total, stage) - getattr(current, stage))
    current.reset()
    loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
