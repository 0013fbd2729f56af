"""EpochLoader: each iteration is one epoch, whatever became of the one before it."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any, Never

import pytest
import torch
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from iianet.errors import StoreError, TrainingError
from loaders.epochs import EpochDataset, EpochLoader, Epochs
from loaders.workers import sendable

LENGTH = 8


class Numbers(EpochDataset[torch.Tensor]):
    """Batches that say their epoch and number; one of the first epoch may fail."""

    def __init__(self, failing: int | None = None) -> None:
        self.epochs, self.batch_bytes, self.failing = Epochs(LENGTH), 8, failing

    def __iter__(self) -> Iterator[torch.Tensor]:
        return sendable(self._numbers())

    def _numbers(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, start = self.epochs.begin()
        for number in range(start, LENGTH)[first::step]:
            if (epoch, number) == (0, self.failing):
                raise StoreError("one.tar: is damaged")
            yield torch.tensor([epoch, number])


def read(loader: Any) -> list[tuple[int, ...]]:
    return [tuple(batch.tolist()) for batch in loader]


def epoch(number: int) -> list[tuple[int, int]]:
    return [(number, batch) for batch in range(LENGTH)]


def test_workers_do_not_join_an_iteration_that_was_left_before_all_had_begun_it() -> None:
    """A loader of fewer workers leaves the same trace, and an equal seed of torch makes it look like their own."""
    numbers = Numbers()
    torch.manual_seed(0)
    assert sorted(read(EpochLoader(numbers, num_workers=1))) == epoch(0)
    for expected in (1, 2):
        torch.manual_seed(0)
        assert read(EpochLoader(numbers, num_workers=2)) == epoch(expected)


def test_a_loader_can_be_used_again_after_an_error_of_one_batch() -> None:
    loader = EpochLoader(Numbers(failing=3), num_workers=2, persistent_workers=True)
    with pytest.raises(StoreError, match=r"one\.tar: is damaged"):
        read(loader)
    assert read(loader) == epoch(1)
    assert read(loader) == epoch(2)


def test_a_worker_that_dies_between_two_epochs_is_named_and_the_next_one_has_others() -> None:
    loader = EpochLoader(Numbers(), num_workers=1, persistent_workers=True)
    assert read(loader) == epoch(0)
    process = loader._iterator._workers[0]  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(TrainingError, match=r"a loader worker \(pid\(?s?\)? \d+\) .*resume last"):
        read(loader)
    assert [batch[1] for batch in read(loader)] == list(range(LENGTH))


class Late(Numbers):
    """Its first worker begins when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_begin = multiprocessing.get_context("fork").Event()

    def _numbers(self) -> Iterator[torch.Tensor]:
        self.may_begin.wait()
        return super()._numbers()


@pytest.mark.timeout(60)
def test_where_the_wait_for_the_first_batch_is_interrupted_the_next_iteration_knows_its_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = Late()
    loader = EpochLoader(numbers, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    with monkeypatch.context() as waiting, pytest.raises(KeyboardInterrupt):
        waiting.setattr(_MultiProcessingDataLoaderIter, "_get_data", interrupted)
        read(loader)
    count = numbers.epochs.count
    monkeypatch.setattr(numbers.epochs, "count", lambda *words: numbers.may_begin.set() or count(*words))
    iterator = iter(loader)
    epoch, number = next(iterator).tolist()
    assert loader.epochs.position == (epoch, number + 1)


def interrupted(*_: Any) -> Never:
    raise KeyboardInterrupt
