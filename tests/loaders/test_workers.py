"""Loader workers: no batch is lost without an error that says why and what to do."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from helpers.batches import data
from helpers.corpus import Corpus, make_corpus
from torch.utils.data import DataLoader, IterableDataset

from iianet.errors import ConfigError, TrainingError
from loaders.dataset import ExampleDataset
from loaders.workers import sendable, start_workers

TWO_WORKERS = "datamodule.data_config.num_workers=2"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 6, "val": 4, "test": 0}, frames=4)


class Ones(IterableDataset[torch.Tensor]):
    """Four tensors from each worker; `kill` ends a worker by a signal after its first one."""

    def __init__(self, kill: int = 0) -> None:
        self.kill = kill

    def __iter__(self) -> Iterator[torch.Tensor]:
        return sendable(self._ones())

    def _ones(self) -> Iterator[torch.Tensor]:
        for number in range(4):
            if number and self.kill:
                os.kill(os.getpid(), self.kill)
            yield torch.ones(3)


def read(dataset: Ones) -> list[torch.Tensor]:
    return list(start_workers(lambda: iter(DataLoader(dataset, batch_size=None, num_workers=2))))


def test_what_workers_make_arrives_whole() -> None:
    assert [tensor.tolist() for tensor in read(Ones())] == [[1, 1, 1]] * 8


def test_a_batch_without_room_in_shared_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(self: torch.UntypedStorage) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", no_room)
    with pytest.raises(ConfigError, match=r"/dev/shm: .*No space left on device.* are free.*--shm-size.*num_workers"):
        read(Ones())


def test_a_lock_without_room_in_shared_memory_is_an_error(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.context.SpawnContext.Lock", no_room)
    with pytest.raises(ConfigError, match=r"/dev/shm: the place in an epoch cannot be shared .*No space.*--shm-size"):
        data(corpus, None).train_dataloader()


def test_a_folder_for_sockets_with_a_long_path_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"/tmp/{'x' * 71}"  # 76 bytes
    monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: f"{folder}/pymp-12345678")
    expected = rf"TMPDIR: a loader worker cannot hand over a batch, .* 107 bytes and {folder} has 76 .* a short path"
    with pytest.raises(ConfigError, match=expected):
        read(Ones())


def test_a_worker_that_is_killed_is_an_error_that_says_how_to_continue() -> None:
    """By its number where the system's signal comes first, else by what it was doing."""
    seen = r"a loader worker (\(pid \d+\) is killed by signal|ended while it handed over a batch)"
    with pytest.raises(TrainingError, match=rf"{seen}.*memory ran out.*num_workers.*--resume last"):
        read(Ones(kill=signal.SIGKILL))


def test_a_death_is_raised_where_batches_are_read_and_nowhere_else() -> None:
    """Raised within logging, it would leave a lock locked, and other threads would wait for ever."""
    worker = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)

    def dead(*_: object) -> None:
        raise RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: Killed. ")

    def read() -> Iterator[int]:
        worker.start()
        return iter(range(9))

    before = signal.signal(signal.SIGCHLD, dead)
    try:
        reading = start_workers(read)
        assert next(reading) == 0
        signal.raise_signal(signal.SIGCHLD)
        with pytest.raises(TrainingError, match=rf"worker \(pid {worker.pid}\) is killed by signal: Killed\. .*resume"):
            next(reading)
        worker.join(10)
        assert worker.exitcode == -signal.SIGKILL, "nobody waits for workers of no use"
        other = start_workers(lambda: iter(range(9)))
        assert next(other) == 0
        signal.raise_signal(signal.SIGCHLD)
        assert list(other) == list(range(1, 9)), "their end concerns nobody else"
    finally:
        signal.signal(signal.SIGCHLD, before)
        worker.kill()


def test_shared_memory_that_is_too_small_is_refused_before_workers_start(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    source = data(corpus, None, TWO_WORKERS)
    first = next(iter(source.train_dataloader()))
    batch_bytes = sum(value.nbytes for value in vars(first).values() if isinstance(value, torch.Tensor))
    for free, fits in ((batch_bytes * 5 * 2, True), (batch_bytes * 4, False)):
        monkeypatch.setattr("os.statvfs", lambda _, free=free: SimpleNamespace(f_bavail=free, f_frsize=1))
        if fits:
            assert len(list(source.train_dataloader())) == 5
        else:
            with pytest.raises(
                ConfigError, match=r"/dev/shm: .* are free, and 2 loader workers of each rank need .*--shm-size"
            ):
                next(iter(source.train_dataloader()))
    assert len(list(data(corpus, None).train_dataloader())) == 5  # no workers, no room needed


def test_the_room_is_that_of_all_ranks_of_the_machine(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    for ranks, nodes in ((4, 1), (8, 2)):
        source = data(corpus, None, TWO_WORKERS, "datamodule.data_config.batch_size=1")
        source.trainer = SimpleNamespace(global_rank=1, world_size=ranks, num_nodes=nodes)  # type: ignore[assignment]
        needed = 4 * (2 * 2 + 1) * source.train_dataloader().batch_bytes
        for free, fits in ((needed, True), (needed - 1, False)):
            monkeypatch.setattr("os.statvfs", lambda _, free=free: SimpleNamespace(f_bavail=free, f_frsize=1))
            loader = source.train_dataloader()
            if fits:
                next(iter(loader))
                monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
                next(iter(loader))  # what is in use by then is that of the ranks themselves
            else:
                with pytest.raises(ConfigError, match=r"2 loader workers of each rank need .* in all \(4 ranks\)"):
                    next(iter(loader))


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_worker_that_ends_while_it_hands_over_a_batch_is_named(error: Exception) -> None:
    def broken(batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        yield next(batches)
        raise error  # of the socket that the worker had

    loader: DataLoader[torch.Tensor] = DataLoader(Ones(), batch_size=None, num_workers=1)
    with pytest.raises(
        TrainingError, match=r"a loader worker ended while it handed over a batch\. Killed: .*resume last"
    ):
        list(start_workers(lambda: broken(iter(loader))))


def test_an_error_that_is_not_of_a_worker_passes_as_it_is() -> None:
    def fail() -> Iterator[torch.Tensor]:
        yield torch.ones(1)
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(RuntimeError, match="CUDA error") as raised:
        list(start_workers(fail))
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("start", [0, 2])
def test_batches_that_do_not_arrive_are_an_error(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    batches = ExampleDataset._batches
    monkeypatch.setattr(ExampleDataset, "_batches", lambda self: iter(list(batches(self))[:-1]))
    loader = data(corpus, None, TWO_WORKERS).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batch": start})
    with pytest.raises(TrainingError, match=rf"gave {3 - start} of the {5 - start} batches .*num_workers"):
        list(loader)
