"""Ranks of torchrun or Slurm: one store, whoever of them is late, dies or never comes."""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO

import pytest
from helpers.builds import CPU, Run, build_store, change_mouth, contents, stored
from helpers.corpus import Corpus

from iianet.errors import StoreError
from shardwriter.build.options import BuildOptions
from shardwriter.build.report import BuildReport
from shardwriter.encode.job import Recipe
from shardwriter.encode.tasks import Encoding, Progress
from shardwriter.execute.executor import Executor, OwnProcess
from shardwriter.execute.rank import Rank
from shardwriter.execute.rank_build import build_as_rank
from shardwriter.format.plan import ShardTask
from shardwriter.storage import lock
from shardwriter.storage.lock import build_lock
from shardwriter.store.catalog import Catalog

SMALL = "shardwriter.utterances_per_shard=1"

pytestmark = pytest.mark.usefixtures("quick")


class Meets:
    """Begins to claim when all ranks have come."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier
        self.met = False

    def run(self, recipe: Recipe, encoding: Encoding, tasks: Iterable[ShardTask], progress: Progress) -> None:
        if not self.met:
            self.met = True
            self.barrier.wait()
        OwnProcess().run(recipe, encoding, tasks, progress)


class Dies(Meets):
    """Claims two tasks, writes one, and ends."""

    def run(self, recipe: Recipe, encoding: Encoding, tasks: Iterable[ShardTask], progress: Progress) -> None:
        claimed = list(islice(tasks, 2))
        OwnProcess().run(recipe, encoding, claimed[:1], progress)
        self.barrier.wait()
        raise StoreError("this rank dies")


def meeting(ranks: int, dying: int = 0) -> list[Executor]:
    """Executors of ranks that meet, of which the first ones die."""
    barrier = threading.Barrier(ranks, timeout=20)
    return [Dies(barrier) if number < dying else Meets(barrier) for number in range(ranks)]


def rank(number: int, world_size: int, job: str = "a job") -> Rank:
    return Rank(
        number=number, world_size=world_size, local=number, local_size=world_size, job=f"{job}, {world_size} ranks"
    )


def run_ranks(
    corpus: Corpus,
    store: Path,
    executors: Sequence[Executor],
    *overrides: str,
    ended: threading.Event | None = None,
    **options: object,
) -> list[tuple[BuildReport, bool] | StoreError]:
    """What each of some ranks did, or why it could not; `ended` is set when one could not."""

    def one(number: int) -> tuple[BuildReport, bool] | StoreError:
        own = BuildOptions(device=CPU, executor=executors[number], **options)  # type: ignore[arg-type]
        try:
            return build_as_rank(corpus.config(SMALL, *overrides), store, own, rank(number, len(executors)))
        except StoreError as error:
            if ended:
                ended.set()
            return error

    with ThreadPoolExecutor(len(executors)) as pool:
        return list(pool.map(one, range(len(executors))))


@pytest.fixture
def alone(corpus: Corpus, tmp_path: Path) -> Path:
    store = tmp_path / "alone"
    build_store(corpus, store, SMALL, splits=("train", "val"))
    return store


def last_of(outcomes: Sequence[tuple[BuildReport, bool] | StoreError]) -> BuildReport:
    (last,) = [outcome[0] for outcome in outcomes if not isinstance(outcome, StoreError) and outcome[1]]
    return last


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_make_the_store_that_one_process_makes(corpus: Corpus, store: Path, alone: Path, ranks: int) -> None:
    report = last_of(run_ranks(corpus, store, meeting(ranks), splits=("train", "val")))
    assert contents(store) == contents(alone)
    assert (store / "train.index").is_file() and (store / "README.md").is_file()
    assert report.encoded == {"train": 5, "val": 2} and report.shards == 7
    assert report.planned["train"]["new"] == 5
    assert not list(store.glob(".tmp-*"))


def test_the_last_rank_writes_what_a_dead_one_had_claimed(corpus: Corpus, store: Path, alone: Path) -> None:
    dead = threading.Event()

    class Survives(Meets):
        """Goes on when the other one is dead and its lock free."""

        def run(self, recipe: Recipe, encoding: Encoding, tasks: Iterable[ShardTask], progress: Progress) -> None:
            if not self.met:
                self.met = True
                self.barrier.wait()
                assert dead.wait(timeout=20)
            OwnProcess().run(recipe, encoding, tasks, progress)

    barrier = threading.Barrier(2, timeout=20)
    outcomes = run_ranks(corpus, store, [Dies(barrier), Survives(barrier)], splits=("train", "val"), ended=dead)
    assert isinstance(outcomes[0], StoreError)
    report = last_of(outcomes)
    assert contents(store) == contents(alone)
    assert report.failed == {"train": [], "val": []}
    assert sum(report.encoded.values()) == 6, "one of the seven a rank wrote that did not live to tell"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_rank_that_comes_late_finds_nothing_to_do(corpus: Corpus, store: Path, alone: Path, overwrite: bool) -> None:
    options = BuildOptions(device=CPU, splits=("train", "val"), overwrite=overwrite)
    build_store(corpus, store, SMALL, "shardwriter.dtype=float32", splits=("train",))
    if not overwrite:
        shutil.rmtree(store)
    report, is_last = build_as_rank(corpus.config(SMALL), store, options, rank(0, 3))
    assert is_last and sum(report.encoded.values()) == 7
    made = contents(store)
    for number in (1, 2):
        report, is_last = build_as_rank(corpus.config(SMALL), store, options, rank(number, 3))
        assert not is_last and not report.encoded
        assert contents(store) == made
    report, is_last = build_as_rank(corpus.config(SMALL), store, options, rank(0, 3))  # a new job of the same name
    assert is_last and sum(report.encoded.values()) == (7 if overwrite else 0)


def test_one_rank_sums_up_where_asking_to_be_alone_in_vain_keeps_the_lock(
    corpus: Corpus, store: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, whose flock is made of locks on bytes."""
    kind = fcntl.flock

    def flock(stream: IO[str], how: int) -> None:
        try:
            kind(stream, how)
        except BlockingIOError:
            kind(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            raise

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    report = last_of(run_ranks(corpus, store, meeting(3), splits=("train", "val")))
    assert contents(store) == contents(alone)
    assert report.shards == 7


def test_what_dead_ranks_left_the_next_run_finishes(corpus: Corpus, store: Path, alone: Path) -> None:
    ended = run_ranks(corpus, store, meeting(2, dying=2), splits=("train", "val"))
    assert all(isinstance(end, StoreError) for end in ended)
    assert not (store / "train.index").exists()
    assert contents(store).items() < contents(alone).items()
    report = last_of(run_ranks(corpus, store, meeting(1), splits=("train", "val")))
    assert sum(counts["resumed"] for counts in report.planned.values()) == sum(report.encoded.values()) == 5
    assert contents(store) == contents(alone)
    assert not list(store.glob(".tmp-*"))


def test_ranks_overwrite_a_store_and_extend_it(corpus: Corpus, store: Path) -> None:
    run_ranks(corpus, store, meeting(1), splits=("train", "val"))
    other = "videonet.videonet_config.seed=1"
    report = last_of(run_ranks(corpus, store, meeting(2), other, splits=("train", "val"), overwrite=True))
    assert report.encoded == {"train": 5, "val": 2}
    catalog = Catalog.open(store)
    assert catalog.record.identity.encoder["seed"] == 1 and len(catalog.plans) == 1
    change_mouth(corpus.mouth("tr_001"))
    report = last_of(run_ranks(corpus, store, meeting(2), other, splits=("train", "val")))
    assert report.encoded == {"train": 1, "val": 0} and report.planned["train"]["changed"] == 1


def test_failures_are_summed_up_by_the_last_rank(corpus: Corpus, store: Path) -> None:
    corpus.mouth("tr_001").unlink()
    report = last_of(run_ranks(corpus, store, meeting(2), splits=("train",)))
    assert [failure.key for failure in report.failed["train"]] == ["tr_001"]
    assert report.encoded == {"train": 4}


def test_ranks_and_other_builds_refuse_each_other(corpus: Corpus, store: Path) -> None:
    options = BuildOptions(device=CPU, splits=("train",))
    with build_lock(store), pytest.raises(StoreError, match=rf"another build is writing.*process {os.getpid()} on"):
        build_as_rank(corpus.config(), store, options, rank(0, 2))

    class Tries:
        def run(self, *_: object) -> None:
            with pytest.raises(StoreError, match=r"another build is writing to it \(rank 0 of a job.*: process \d+ on"):
                build_store(corpus, store, splits=("train",))
            with pytest.raises(StoreError, match=r"\(rank 0 of a job.*; this is another job, 2 ranks, or"):
                build_as_rank(corpus.config(), store, options, rank(1, 2, "another job"))
            with pytest.raises(StoreError, match=r"this is a job, 2 ranks, or one of its name that was asked for"):
                build_as_rank(corpus.config(), store, replace(options, splits=("val",)), rank(1, 2))
            raise StoreError("tried")

    trying = BuildOptions(device=CPU, splits=("train",), executor=Tries())
    with pytest.raises(StoreError, match="tried"):
        build_as_rank(corpus.config(), store, trying, rank(0, 2))
    assert build_as_rank(corpus.config(), store, options, rank(0, 2))[1]
    assert len(stored(store, "train")) == 5


def test_a_rank_that_cannot_begin_lets_the_next_one_try(corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, splits=("train",))
    refused = run_ranks(corpus, store, meeting(3), "videonet.videonet_config.seed=1", splits=("train",))
    assert all(isinstance(end, StoreError) and "made with another identity" in str(end) for end in refused)


def test_a_torn_record_of_the_job_is_named_with_the_cure(corpus: Corpus, store: Path) -> None:
    class Tears:
        def run(self, recipe: Recipe, encoding: Encoding, tasks: Iterable[ShardTask], progress: Progress) -> None:
            (store / ".job").write_text('{"job": "a job", "ident')
            OwnProcess().run(recipe, encoding, tasks, progress)

    options = BuildOptions(device=CPU, splits=("train",), executor=Tears())
    with pytest.raises(StoreError, match=r"\.job: does not say how far .* start it again"):
        build_as_rank(corpus.config(), store, options, rank(0, 2))
    assert build_as_rank(corpus.config(), store, BuildOptions(device=CPU, splits=("train",)), rank(0, 2))[1]


def test_the_command_builds_as_a_rank(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = run("--data_split", "train")
    assert outcome.code == 0 and "5 utterances in 2 shards" in outcome.out
    assert len(list((store / "logs").glob("build-*-rank1.log"))) == 1
