"""Builds by processes that wait for each other, as the ranks of a training run do."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.builds import CPU
from helpers.corpus import Corpus

from iianet.errors import StoreError
from shardwriter.build.build import BuildOptions, prepare
from shardwriter.execute.shared_build import build_together
from shardwriter.storage.lock import build_lock

pytestmark = pytest.mark.usefixtures("quick")


class Rank:
    """One of some threads that take the same steps."""

    def __init__(self, number: int, count: int, barrier: threading.Barrier, values: list[bool]) -> None:
        self.number = number
        self.count = count
        self._barrier = barrier
        self._values = values

    def all(self, value: bool) -> bool:
        self._values[self.number] = value
        self._barrier.wait()
        agreed = all(self._values)
        self._barrier.wait()
        return agreed


def build_with(ranks: int, corpus: Corpus, store: Path) -> list[Exception | None]:
    """What stopped each of some ranks; a rank that waits for one that never comes is stopped by the barrier."""
    barrier, values = threading.Barrier(ranks, timeout=20), [True] * ranks

    def one(number: int) -> Exception | None:
        try:
            build = prepare(corpus.config(), store, BuildOptions(device=CPU, splits=("train", "val")))
            build_together(build, Rank(number, ranks, barrier, values))
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))


def test_ranks_build_a_store_together(corpus: Corpus, store: Path) -> None:
    assert build_with(3, corpus, store) == [None, None, None]
    assert (store / "train.index").is_file()


def test_no_rank_waits_for_a_first_one_that_is_refused(corpus: Corpus, complete_store: Path) -> None:
    with build_lock(complete_store):
        first, second = build_with(2, corpus, complete_store)
    assert isinstance(first, StoreError) and "another build is writing to it" in str(first)
    assert isinstance(second, StoreError) and "another rank could not build what is missing" in str(second)
