"""Epochs of ShardedEmbeddings: each iteration is the next one, for every kind of worker, and can be resumed."""

import copy
import os
import pickle
import re
import signal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from iianet.errors import ConfigError, TrainingError
from loaders import EmbeddingBatch, EmbeddingLoader, ShardedEmbeddings
from loaders.epochs import Position
from loaders.workers import ignore_termination
from shardwriter import write_store

BATCHES = 7


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path, ((f"utt{n}", np.full((4, 3), n, np.float16), {}) for n in range(25)), utterances_per_shard=4)
    return path


def opened(store: Path, **options: Any) -> ShardedEmbeddings:
    return ShardedEmbeddings(store, batch_size=4, **options)


def keys(batches: Any) -> list[list[str]]:
    return [batch.keys for batch in batches]


@pytest.fixture(scope="module")
def epochs(store: Path) -> list[list[list[str]]]:
    """Keys of the first epochs."""
    found = [keys(opened(store, epoch=epoch)) for epoch in range(4)]
    assert all(len(epoch) == BATCHES and len({key for batch in epoch for key in batch}) == 25 for epoch in found)
    assert not any(first == second for first, second in pairwise(found))
    return found


KINDS = [
    {},
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
    pytest.param({"num_workers": 2, "multiprocessing_context": "spawn"}, marks=pytest.mark.slow),
    pytest.param({"num_workers": 2, "multiprocessing_context": "forkserver"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", KINDS)
def test_each_iteration_is_the_next_epoch(store: Path, epochs: list[list[list[str]]], options: dict[str, Any]) -> None:
    loader: DataLoader[EmbeddingBatch] = DataLoader(opened(store), batch_size=None, **options)
    assert [keys(loader) for _ in range(3)] == epochs[:3]


def test_equal_seeds_of_torch_do_not_repeat_an_epoch(store: Path, epochs: list[list[list[str]]]) -> None:
    loader: DataLoader[EmbeddingBatch] = DataLoader(opened(store), batch_size=None, num_workers=2)
    for epoch in epochs[:3]:
        torch.manual_seed(0)
        assert keys(loader) == epoch


def test_two_iterations_at_a_time_are_two_epochs(store: Path, epochs: list[list[list[str]]]) -> None:
    loader: DataLoader[EmbeddingBatch] = DataLoader(opened(store), batch_size=None, num_workers=2)
    pairs = [(first.keys, second.keys) for first, second in zip(loader, loader, strict=True)]
    assert sorted([[first for first, _ in pairs], [second for _, second in pairs]]) == sorted(epochs[:2])


def test_loaders_with_other_workers_go_on_with_the_epochs(store: Path, epochs: list[list[list[str]]]) -> None:
    dataset = opened(store)
    for workers, epoch in zip((1, 0, 3, 2), epochs, strict=True):
        assert keys(DataLoader(dataset, batch_size=None, num_workers=workers)) == epoch


def test_an_iteration_left_early_is_an_epoch_too(store: Path, epochs: list[list[list[str]]]) -> None:
    for workers in (0, 2):
        loader: DataLoader[EmbeddingBatch] = DataLoader(opened(store), batch_size=None, num_workers=workers)
        assert next(iter(loader)).keys == epochs[0][0]
        assert keys(loader) == epochs[1]


def test_a_copy_counts_by_itself(store: Path, epochs: list[list[list[str]]]) -> None:
    dataset = opened(store)
    list(dataset)
    for copied in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert keys(copied) == epochs[1]
    assert keys(dataset) == epochs[1]


def test_an_iteration_in_this_process_is_resumed_anywhere(store: Path, epochs: list[list[list[str]]]) -> None:
    for taken in range(BATCHES + 1):
        dataset = opened(store)
        reading = iter(dataset)
        for _ in range(taken):
            next(reading)
        resumed = opened(store)
        resumed.load_state_dict(dataset.state_dict())
        expected = epochs[0][taken:] if taken < BATCHES else epochs[1]
        assert keys(resumed) == expected
        assert keys(resumed) == epochs[1 if taken < BATCHES else 2]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("taken", [0, 1, 3, 6, 7])
def test_a_loader_resumes_where_its_batches_were_used(
    store: Path, epochs: list[list[list[str]]], workers: int, taken: int
) -> None:
    loader = EmbeddingLoader(opened(store), num_workers=workers)
    assert len(loader) == BATCHES
    list(loader)
    reading = iter(loader)
    for _ in range(taken):
        next(reading)
    state = loader.state_dict()
    del reading
    resumed = EmbeddingLoader(opened(store), num_workers=2 - workers)
    resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
    left = epochs[1][taken:] if taken < BATCHES else []
    assert [keys(resumed), keys(resumed)] == ([left, epochs[2]] if left else epochs[2:4])


def test_a_dataset_that_workers_read_does_not_pretend_to_know_the_position(store: Path) -> None:
    dataset = opened(store)
    list(DataLoader(dataset, batch_size=None, num_workers=1))
    with pytest.raises(ConfigError, match=r"state_dict: .* loaders\.EmbeddingLoader\(dataset, num_workers="):
        dataset.state_dict()
    dataset.set_epoch(3)
    assert dataset.state_dict()["epoch"] == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 1}, "seed 0, here 1"), ({"batch_size": 5}, "global_batch 4, here 5"), ({"shuffle": False}, "shuffle")],
)
def test_a_state_of_another_order_is_refused_inside_an_epoch(store: Path, change: dict[str, Any], said: str) -> None:
    dataset = opened(store)
    reading = iter(dataset)
    next(reading)
    other = ShardedEmbeddings(store, **{"batch_size": 4, **change})
    with pytest.raises(ConfigError, match=rf"batch 1 of epoch 0 in another order \({said}.*set_epoch\(0\)"):
        other.load_state_dict(dataset.state_dict())
    list(reading)
    other.load_state_dict(dataset.state_dict())
    assert other.state_dict()["epoch"] == 1


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (1, 4), (4, 2)])
def test_with_another_number_of_ranks_no_row_is_lost_or_repeated(store: Path, before: int, after: int) -> None:
    """25 utterances in steps of 8: where there are more ranks, the last batch takes rows of the one before."""

    def ranks(count: int) -> list[ShardedEmbeddings]:
        return [ShardedEmbeddings(store, batch_size=8 // count, rank=rank, world_size=count) for rank in range(count)]

    refused = 0
    for taken in range(1, 4):
        first, second = ranks(before), ranks(after)
        found = [key for one in first for _, batch in zip(range(taken), one, strict=False) for key in batch.keys]
        try:
            for one in second:
                one.load_state_dict(first[0].state_at(Position(0, taken)))
        except ConfigError as error:
            refused += 1
            assert re.search(r"used 2\d, here 2\d", str(error))
            continue
        found += [key for one in second for batch in one for key in batch.keys]
        assert sorted(found) == sorted(f"utt{number}" for number in range(25))
    assert refused == 1


def test_a_state_costs_one_digest_of_the_keys(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []

    def digest(table: Any) -> str:
        digests.append(table)
        return "0"

    monkeypatch.setattr("loaders.embeddings.sharded_embeddings.digest_table", digest)
    dataset = opened(store)
    for _ in dataset:
        assert dataset.state_dict()["keys"] == "0"
    assert len(digests) == 1


def test_a_resumed_epoch_does_not_read_ahead_what_it_has_used(store: Path) -> None:
    dataset = opened(store, shuffle=False)
    dataset.epochs.seek(Position(0, 5))
    list(dataset)
    assert np.flatnonzero(dataset._read_ahead.checked).tolist() == [5, 6]


def test_a_state_of_another_store_is_refused_inside_an_epoch(store: Path, tmp_path: Path) -> None:
    dataset = opened(store)
    next(iter(dataset))
    write_store(tmp_path, ((f"other{n}", np.zeros((4, 3), np.float16), {}) for n in range(25)))
    with pytest.raises(ConfigError, match=r"another order \(keys [^,]*, here [^;]*\)"):
        opened(tmp_path).load_state_dict(dataset.state_dict())


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"epoch": "1", "batch": 0}, {"epoch": 0, "batch": -1}, None])
def test_what_is_no_state_is_refused(store: Path, state: Any) -> None:
    with pytest.raises(ConfigError, match="ShardedEmbeddings: "):
        opened(store).load_state_dict(state)


class Quitting(ShardedEmbeddings):
    """Its workers end after two batches."""

    def __len__(self) -> int:
        return min(super().__len__(), 2) if torch.utils.data.get_worker_info() else super().__len__()


def test_batches_that_workers_lost_are_an_error(store: Path) -> None:
    loader = EmbeddingLoader(Quitting(store, batch_size=4), num_workers=2)
    with pytest.raises(
        TrainingError, match=r"gave 2 of the 7 batches that were left .*state_dict of the loader.*num_workers; 0 loads"
    ):
        list(loader)


class Killed(ShardedEmbeddings):
    """Its workers are killed at their second batch."""

    def batch(self, rows: Any, memory: torch.Tensor | None = None) -> EmbeddingBatch:
        self.made = getattr(self, "made", 0) + 1
        if torch.utils.data.get_worker_info() and self.made == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(rows, memory)


def test_a_killed_worker_is_an_error_that_says_how_to_continue(store: Path) -> None:
    loader = EmbeddingLoader(Killed(store, batch_size=4), num_workers=2)
    with pytest.raises(
        TrainingError, match=r"a loader worker (\(pid|ended while).*memory ran out.*from the state_dict of the loader"
    ):
        list(loader)


def test_workers_ignore_the_signals_of_schedulers_unless_the_caller_starts_them_otherwise(store: Path) -> None:
    assert EmbeddingLoader(opened(store), num_workers=1).worker_init_fn is ignore_termination
    assert EmbeddingLoader(opened(store), num_workers=1, worker_init_fn=print).worker_init_fn is print


def test_too_little_shared_memory_is_refused_before_workers_start(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has 4 embeddings of 4 x 3 float16; 2 workers make 2 each ahead, and one is in use."""
    for free, fits in ((5 * 96, True), (5 * 96 - 1, False)):
        monkeypatch.setattr("os.statvfs", lambda _, free=free: SimpleNamespace(f_bavail=free, f_frsize=1))
        loader = EmbeddingLoader(opened(store), num_workers=2)
        if fits:
            assert len(list(loader)) == BATCHES
        else:
            with pytest.raises(ConfigError, match=r"/dev/shm: 479 .* are free, and 2 loader workers .*--shm-size"):
                list(loader)
