"""Builds by processes that wait for each other, as the ranks of a training run do."""

import copy
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.builds import CPU, build_store, contents, interrupt_build, opened, stored
from helpers.corpus import Corpus, make_corpus

from iianet.errors import StoreError
from shardwriter.build.build import prepare
from shardwriter.build.options import BuildOptions
from shardwriter.build.report import BuildReport
from shardwriter.execute.executor import OneProcess
from shardwriter.execute.ranks import run_together
from shardwriter.storage.folder import Folder
from shardwriter.storage.lock import build_lock

SPLITS = ("train", "val")

pytestmark = pytest.mark.usefixtures("quick")


class Rank:
    """One of some threads that take the same steps."""

    def __init__(self, number: int, barrier: threading.Barrier, values: list[Any]) -> None:
        self.number = number
        self._barrier = barrier
        self._values = values

    def exchange(self, value: Any) -> list[Any]:
        self._values[self.number] = copy.deepcopy(value)
        self._barrier.wait()
        given = list(self._values)
        self._barrier.wait()
        return given


def build_with(ranks: int, corpus: Corpus, store: Path, *overrides: str) -> list[BuildReport | Exception]:
    """What each of some ranks reports, or what stopped it; one that waits for a rank that never comes is stopped by
    the barrier."""
    barrier = threading.Barrier(ranks, timeout=20)
    values: list[Any] = [None] * ranks

    def one(number: int) -> BuildReport | Exception:
        try:
            build = prepare(corpus.config(*overrides), Folder(store), BuildOptions(device=CPU, splits=SPLITS))
            run_together(build, Folder(store), OneProcess(CPU), Rank(number, barrier, values))
        except Exception as error:
            return error
        return build.report

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))


def test_ranks_build_a_store_together(corpus: Corpus, store: Path, tmp_path: Path) -> None:
    first, *others = build_with(3, corpus, store)
    assert isinstance(first, BuildReport) and all(isinstance(other, BuildReport) for other in others)
    assert first.stored == {split: len(corpus.names[split]) for split in SPLITS}
    assert (store / "train.index").is_file()
    build_store(corpus, tmp_path / "alone", splits=SPLITS)
    assert contents(store) == contents(tmp_path / "alone")


def test_ranks_add_to_a_store_together(corpus: Corpus, complete_store: Path, tmp_path: Path) -> None:
    grown = make_corpus(corpus.root, {"train": 9, "val": 2})
    shutil.copytree(complete_store, tmp_path / "alone")
    build_store(grown, tmp_path / "alone", splits=SPLITS)
    assert all(isinstance(done, BuildReport) for done in build_with(2, grown, complete_store))
    assert contents(complete_store) == contents(tmp_path / "alone")


def test_ranks_finish_an_overwrite_in_progress_and_add_what_is_new_since(corpus: Corpus, complete_store: Path) -> None:
    other = "videonet.videonet_config.seed=1"
    interrupt_build(corpus, complete_store, other, packs=1, splits=SPLITS, overwrite=True)
    grown = make_corpus(corpus.root, {"train": 9, "val": 2})
    assert all(isinstance(done, BuildReport) for done in build_with(2, grown, complete_store, other))
    assert opened(complete_store).identity.encoder["seed"] == 1
    assert stored(complete_store, "train").keys() == set(grown.names["train"])


def test_no_rank_waits_for_a_first_one_that_is_refused(corpus: Corpus, complete_store: Path) -> None:
    with build_lock(complete_store):
        first, second = build_with(2, corpus, complete_store)
    assert isinstance(first, StoreError) and "another build is writing to it" in str(first)
    assert isinstance(second, StoreError) and "another rank could not build what is missing" in str(second)


@pytest.mark.parametrize("step", ["write", "end"])
def test_no_rank_waits_for_one_that_fails_on_the_way(
    step: str, corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("no space is left")

    if step == "write":
        monkeypatch.setattr("shardwriter.execute.ranks._tasks", fail)
        assert all("no space is left" in str(found) for found in build_with(2, corpus, store))
    else:
        monkeypatch.setattr("shardwriter.execute.ranks._end", fail)
        first, second = build_with(2, corpus, store)
        assert "no space is left" in str(first) and "another rank could not build" in str(second)
    monkeypatch.undo()
    assert all(isinstance(done, BuildReport) for done in build_with(2, corpus, store))


def test_a_rank_that_fails_where_the_other_was_killed_says_why_it_failed(corpus: Corpus, store: Path) -> None:
    class Alone:
        number = 0

        def exchange(self, value: Any) -> list[Any]:  # noqa: ARG002
            raise RuntimeError("connection closed by peer")

    build = prepare(corpus.config(), Folder(store), BuildOptions(device=CPU, splits=SPLITS))
    with build_lock(store), pytest.raises(StoreError, match="another build is writing"):
        run_together(build, Folder(store), OneProcess(CPU), Alone())
    with pytest.raises(RuntimeError, match="connection closed"):
        run_together(build, Folder(store), OneProcess(CPU), Alone())
