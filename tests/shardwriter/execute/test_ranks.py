"""Ranks of torchrun or Slurm: one store, whoever of them is late, dies or never comes."""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO

import pytest
from helpers.builds import CPU, Run, build_store, change_mouth, contents, opened, plans, stored
from helpers.corpus import Corpus, make_corpus

from iianet.errors import StoreError
from iianet.launch import Launch
from shardwriter.build.build import Build, prepare
from shardwriter.build.compact import Compaction
from shardwriter.build.options import BuildOptions
from shardwriter.build.report import BuildReport
from shardwriter.encode.write_shards import Event, Progress, Published
from shardwriter.execute.executor import Executor, Job, OneProcess
from shardwriter.execute.operation import Operation, run_operation
from shardwriter.execute.rank_lock import SharedTasks
from shardwriter.execute.ranks import run_as_rank
from shardwriter.format.plan import PLAN_SCHEMA, ShardTask
from shardwriter.storage import lock
from shardwriter.storage.folder import Folder
from shardwriter.storage.lock import build_lock

SMALL = "shardwriter.utterances_per_shard=1"

pytestmark = pytest.mark.usefixtures("quick")


class Meets:
    """Begins to take tasks when all ranks have come."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier
        self.met = False

    def meet(self) -> None:
        if not self.met:
            self.met = True
            self.barrier.wait()

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        self.meet()
        OneProcess(CPU).run(job, tasks, progress)


class Dies(Meets):
    """Takes two tasks, writes one, and ends."""

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        taken = list(islice(tasks, 2))
        OneProcess(CPU).run(job, taken[:1], progress)
        self.barrier.wait()
        raise StoreError("this rank dies")


class Survives(Meets):
    """Runs when the other one is dead and its lock free."""

    def __init__(self, barrier: threading.Barrier, dead: threading.Event) -> None:
        super().__init__(barrier)
        self.dead = dead

    def meet(self) -> None:
        super().meet()
        assert self.dead.wait(timeout=20)


class TakesItsTime(Meets):
    """Counts shards that it has taken and written, and is as slow as encoding is."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__(barrier)
        self.written = self.taken = self.most_unwritten = 0

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        def counted() -> Iterator[ShardTask]:
            for task in tasks:
                self.taken += 1
                self.most_unwritten = max(self.most_unwritten, self.taken - self.written)
                yield task

        def slow(event: Event) -> None:
            progress(event)
            if isinstance(event, Published):
                self.written += 1
                time.sleep(0.05)

        super().run(job, counted(), slow)


def meeting(ranks: int, dying: int = 0) -> list[Executor]:
    """Executors of ranks that meet, of which the first ones die."""
    barrier = threading.Barrier(ranks, timeout=20)
    return [Dies(barrier) if number < dying else Meets(barrier) for number in range(ranks)]


def rank(number: int, world_size: int, job: str = "a job") -> Launch:
    return Launch(
        number=number, world_size=world_size, local=number, local_size=world_size, job=f"{job}, {world_size} ranks"
    )


def run_together(
    made: Callable[[], Operation], store: Path, executors: Sequence[Executor], ended: threading.Event | None = None
) -> list[tuple[Operation, bool] | StoreError]:
    """The operation of each of some ranks, and whether it was the last one; or why it could not.

    `ended` is set when one could not.
    """

    def one(number: int) -> tuple[Operation, bool] | StoreError:
        try:
            operation = made()
            own = rank(number, len(executors))
            return operation, run_as_rank(operation, Folder(store), executors[number], own)
        except StoreError as error:
            if ended:
                ended.set()
            return error

    with ThreadPoolExecutor(len(executors)) as pool:
        return list(pool.map(one, range(len(executors))))


def run_ranks(
    corpus: Corpus,
    store: Path,
    executors: Sequence[Executor],
    *overrides: str,
    ended: threading.Event | None = None,
    **options: object,
) -> list[tuple[Operation, bool] | StoreError]:
    """The same of builds."""
    own = BuildOptions(device=CPU, **options)  # type: ignore[arg-type]
    return run_together(
        lambda: prepare(corpus.config(SMALL, *overrides), Folder(store), own), store, executors, ended=ended
    )


def build_as_rank(
    corpus: Corpus, store: Path, options: BuildOptions, rank: Launch, executor: Executor | None = None
) -> tuple[BuildReport, bool]:
    """What one rank reports, and whether it is the last one."""
    made = prepare(corpus.config(SMALL), Folder(store), options)
    return made.report, run_as_rank(made, Folder(store), executor or OneProcess(CPU), rank)


@pytest.fixture
def alone(corpus: Corpus, tmp_path: Path) -> Path:
    store = tmp_path / "alone"
    build_store(corpus, store, SMALL, splits=("train", "val"))
    return store


def last_of(outcomes: Sequence[tuple[Operation, bool] | StoreError]) -> BuildReport:
    (last,) = [outcome[0] for outcome in outcomes if not isinstance(outcome, StoreError) and outcome[1]]
    assert isinstance(last, Build)
    return last.report


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_make_the_store_that_one_process_makes(corpus: Corpus, store: Path, alone: Path, ranks: int) -> None:
    report = last_of(run_ranks(corpus, store, meeting(ranks), splits=("train", "val")))
    assert contents(store) == contents(alone)
    assert (store / "train.index").is_file() and (store / "README.md").is_file()
    assert report.stored == {"train": 5, "val": 2} and report.shards == 7
    assert report.planned["train"]["new"] == 5
    assert not list(store.glob(".tmp-*"))


def test_the_last_rank_writes_what_a_dead_one_had_taken(corpus: Corpus, store: Path, alone: Path) -> None:
    dead = threading.Event()
    barrier = threading.Barrier(2, timeout=20)
    outcomes = run_ranks(corpus, store, [Dies(barrier), Survives(barrier, dead)], splits=("train", "val"), ended=dead)
    assert isinstance(outcomes[0], StoreError)
    report = last_of(outcomes)
    assert contents(store) == contents(alone)
    assert report.failed == {"train": [], "val": []}
    assert sum(report.stored.values()) == 6, "one of the seven a rank wrote that did not live to tell"


def test_ranks_that_start_together_share_the_shards(quick: None, tmp_path: Path, store: Path) -> None:
    """Whoever is ready takes the next one: none takes more than one ahead of what it writes."""
    corpus = make_corpus(tmp_path / "corpus", {"train": 9, "val": 2})
    barrier = threading.Barrier(2, timeout=20)
    executors = [TakesItsTime(barrier), TakesItsTime(barrier)]
    assert last_of(run_ranks(corpus, store, executors, splits=("train", "val"))).shards == 11
    written = [executor.written for executor in executors]
    assert sum(written) == 11 and min(written) >= 3, written
    assert max(executor.most_unwritten for executor in executors) <= 2


def test_what_a_rank_has_taken_is_its_own_until_it_is_written(tmp_path: Path) -> None:
    """The last ones are taken long before they are written, and then there is no more to ask for."""
    names = [f"train-0123456789-{number:06d}" for number in range(3)]
    tasks = [ShardTask(shard=name, split="train", rows=PLAN_SCHEMA.empty_table()) for name in names]
    one, other = (SharedTasks(Folder(tmp_path), tasks, (number, 2)) for number in range(2))
    assert [task.shard for task in one] == names
    assert list(other) == []
    (tmp_path / f"{names[0]}.index").touch()
    one.close()
    assert sorted(task.shard for task in other) == names[1:]


@pytest.mark.parametrize("dying", [0, 1])
def test_ranks_compact_a_store_as_one_process_does(corpus: Corpus, store: Path, tmp_path: Path, dying: int) -> None:
    def made(at: Path) -> Compaction:
        return Compaction(storage=Folder(at), utterances_per_shard=2)

    for seed in (1, 2):
        build_store(corpus, store, SMALL, splits=("train", "val"))
        change_mouth(corpus.mouth("tr_001"), seed=seed)
    build_store(corpus, store, SMALL, splits=("train", "val"))
    shutil.copytree(store, tmp_path / "one")
    one = made(tmp_path / "one")
    run_operation(one, Folder(tmp_path / "one"), OneProcess(CPU))
    dead, barrier = threading.Event(), threading.Barrier(2, timeout=20)
    executors = [Dies(barrier), Survives(barrier, dead)] if dying else meeting(2)
    outcomes = run_together(lambda: made(store), store, executors, ended=dead)
    assert contents(store) == contents(tmp_path / "one")
    assert [path.name for path in store.glob("plan-*")] == plans(store)
    (last,) = [outcome[0] for outcome in outcomes if not isinstance(outcome, StoreError) and outcome[1]]
    assert isinstance(last, Compaction) and last.report == one.report is not None
    assert sum(isinstance(outcome, StoreError) for outcome in outcomes) == dying


def test_ranks_that_overwrite_try_what_fails_only_once(corpus: Corpus, store: Path) -> None:
    """Whichever of them is the last one: everything was read by then."""
    run_ranks(corpus, store, meeting(1), splits=("train",))
    corpus.mouth("tr_001").unlink()
    barrier, dead = threading.Barrier(2, timeout=20), threading.Event()
    executors = [Dies(barrier), Survives(barrier, dead)]
    again = {"splits": ("train",), "overwrite": True, "retry_failed": True}
    report = last_of(run_ranks(corpus, store, executors, ended=dead, **again))
    assert len(plans(store)) == 1
    assert [failure.key for failure in report.failed["train"]] == ["tr_001"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_rank_that_comes_late_finds_nothing_to_do(corpus: Corpus, store: Path, alone: Path, overwrite: bool) -> None:
    options = BuildOptions(device=CPU, splits=("train", "val"), overwrite=overwrite)
    build_store(corpus, store, SMALL, "shardwriter.dtype=float32", splits=("train",))
    if not overwrite:
        shutil.rmtree(store)
    report, is_last = build_as_rank(corpus, store, options, rank(0, 3))
    assert is_last and sum(report.stored.values()) == 7
    made = contents(store)
    for number in (1, 2):
        report, is_last = build_as_rank(corpus, store, options, rank(number, 3))
        assert not is_last and not report.stored
        assert contents(store) == made
    report, is_last = build_as_rank(corpus, store, options, rank(0, 3))  # a new job of the same name
    assert is_last and sum(report.stored.values()) == (7 if overwrite else 0)


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
    assert sum(counts["resumed"] for counts in report.planned.values()) == sum(report.stored.values()) == 5
    assert contents(store) == contents(alone)
    assert not list(store.glob(".tmp-*"))


def test_ranks_overwrite_a_store_and_extend_it(corpus: Corpus, store: Path) -> None:
    run_ranks(corpus, store, meeting(1), splits=("train", "val"))
    other = "videonet.videonet_config.seed=1"
    report = last_of(run_ranks(corpus, store, meeting(2), other, splits=("train", "val"), overwrite=True))
    assert report.stored == {"train": 5, "val": 2}
    assert opened(store).identity.encoder["seed"] == 1 and len(plans(store)) == 1
    change_mouth(corpus.mouth("tr_001"))
    report = last_of(run_ranks(corpus, store, meeting(2), other, splits=("train", "val")))
    assert report.stored == {"train": 1, "val": 0} and report.planned["train"]["changed"] == 1


def test_failures_are_summed_up_by_the_last_rank(corpus: Corpus, store: Path) -> None:
    corpus.mouth("tr_001").unlink()
    report = last_of(run_ranks(corpus, store, meeting(2), splits=("train",)))
    assert [failure.key for failure in report.failed["train"]] == ["tr_001"]
    assert report.stored == {"train": 4}


def test_ranks_and_other_builds_refuse_each_other(corpus: Corpus, store: Path) -> None:
    options = BuildOptions(device=CPU, splits=("train",))
    with build_lock(store), pytest.raises(StoreError, match=rf"another build is writing.*process {os.getpid()} on"):
        build_as_rank(corpus, store, options, rank(0, 2))

    class Tries:
        def run(self, *_: object) -> None:
            with pytest.raises(StoreError, match=r"another build is writing to it \(rank 0 of a job.*: process \d+ on"):
                build_store(corpus, store, splits=("train",))
            with pytest.raises(StoreError, match=r"\(rank 0 of a job.*; this is another job, 2 ranks, or"):
                build_as_rank(corpus, store, options, rank(1, 2, "another job"))
            with pytest.raises(StoreError, match=r"this is a job, 2 ranks, or one of its name that was asked for"):
                build_as_rank(corpus, store, replace(options, splits=("val",)), rank(1, 2))
            raise StoreError("tried")

    with pytest.raises(StoreError, match="tried"):
        build_as_rank(corpus, store, options, rank(0, 2), Tries())
    assert build_as_rank(corpus, store, options, rank(0, 2))[1]
    assert len(stored(store, "train")) == 5


def test_a_rank_that_cannot_begin_lets_the_next_one_try(corpus: Corpus, store: Path) -> None:
    build_store(corpus, store, splits=("train",))
    refused = run_ranks(corpus, store, meeting(3), "videonet.videonet_config.seed=1", splits=("train",))
    assert all(isinstance(end, StoreError) and "made with another identity" in str(end) for end in refused)


@pytest.mark.parametrize(
    "record",
    [
        '{"job": "a job", "ident',
        "[" * 100_000,
        "[]",
        '{"job": "a job, 2 ranks", "asked": "", "shared": {}, "plans": [], "tasks": [], "counts": 7}',
        '{"job": "a job, 2 ranks", "asked": "", "shared": {"a": NaN}, "plans": [], "tasks": [], "counts": {}}',
    ],
)
def test_a_torn_record_of_the_job_is_named_with_the_cure(record: str, corpus: Corpus, store: Path) -> None:
    class Tears:
        def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
            (store / ".job").write_text(record)
            OneProcess(CPU).run(job, tasks, progress)

    options = BuildOptions(device=CPU, splits=("train",))
    with pytest.raises(StoreError, match=r"\.job: does not say what the job is .* start it again"):
        build_as_rank(corpus, store, options, rank(0, 2), Tears())
    assert build_as_rank(corpus, store, options, rank(0, 2))[1]


def test_the_command_builds_and_compacts_as_a_rank(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = run("--data_split", "train")
    assert outcome.code == 0 and "5 utterances in 2 shards" in outcome.out
    assert len(list((store / "logs").glob("build-*-rank1.log"))) == 1
    outcome = run("--compact", "--utterances_per_shard", 5)
    assert outcome.code == 0 and "shards:  2 before, 1 after" in outcome.out
    assert len(list(store.glob("*.tar"))) == 1
