"""A Ray cluster: the same store as one process makes, though a node is lost.

Needs the extra `ray`, which `make test-all` installs.
"""

import importlib.util
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from helpers.builds import CPU, Run, build_store, contents
from helpers.corpus import Corpus, make_corpus

from iianet.errors import ConfigError, StoreError
from shardwriter.build.compact import Compaction
from shardwriter.encode.write_shards import Event, Progress, Published
from shardwriter.execute.executor import Executor, Job, OneProcess
from shardwriter.execute.operation import run_operation
from shardwriter.execute.ray_cluster import RayActor, RayCluster
from shardwriter.format.plan import ShardTask
from shardwriter.storage.folder import Folder

SMALL = "shardwriter.utterances_per_shard=1"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")


@pytest.fixture(autouse=True)
def as_nice_as_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own niceness of 15 leaves its processes nothing where others are at work."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that runs nothing but the driver, and two nodes of one processor."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    made.lost = made.add_node(num_cpus=1, num_gpus=0)
    made.add_node(num_cpus=1, num_gpus=0)
    made.connect()
    yield made
    import ray

    ray.shutdown()
    made.shutdown()


class Losing:
    """Runs on a cluster that loses a node when four shards are published, so that both nodes are at work."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.published: list[str] = []

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        def watch(event: Event) -> None:
            progress(event)
            if isinstance(event, Published):
                self.published.append(event.shard)
                if len(self.published) == 4:
                    self.cluster.remove_node(self.cluster.lost, allow_graceful=False)

        RayCluster(device="cpu").run(job, tasks, watch)


def test_an_actor_that_sees_no_store_says_on_which_machine(tmp_path: Path) -> None:
    outcome = RayActor(Job(storage=Folder(tmp_path / "elsewhere"), source=MagicMock()), "cpu").run(MagicMock())
    with pytest.raises(StoreError, match=r"elsewhere/store.json: is not there on .*; .* that all nodes share, under"):
        outcome.report(MagicMock())


@needs_ray
@pytest.mark.slow
def test_a_lost_node_leaves_the_store_that_one_process_makes(tmp_path: Path, store: Path, cluster: Any) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"train": 12, "val": 2, "test": 2})
    corpus.mouth("tr_003").unlink()
    build_store(corpus, tmp_path / "alone", SMALL)
    losing = Losing(cluster)
    report = build_store(corpus, store, SMALL, executor=losing)
    assert len(losing.published) == len(set(losing.published)) == 16
    assert contents(store) == contents(tmp_path / "alone")
    assert report.stored == {"train": 11, "val": 2, "test": 2}
    assert [failure.key for failure in report.failed["train"]] == ["tr_003"]
    assert not list(store.glob(".tmp-*"))


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_node_that_others_hold_is_not_waited_for(corpus: Corpus, store: Path, tmp_path: Path, cluster: Any) -> None:
    import ray

    class Holds:
        def here(self) -> None:
            pass

    holder = ray.remote(Holds).options(num_cpus=1).remote()
    ray.get(holder.here.remote())
    build_store(corpus, store, SMALL, splits=("train",), executor=RayCluster(device="cpu"))
    build_store(corpus, tmp_path / "alone", SMALL, splits=("train",))
    assert contents(store) == contents(tmp_path / "alone")
    ray.kill(holder)


@needs_ray
@pytest.mark.slow
def test_what_an_actor_refuses_ends_the_build(corpus: Corpus, store: Path, cluster: Any) -> None:
    with pytest.raises(ConfigError, match=r"--device cuda: the Ray cluster has none \(CPU 2\).*give --device cpu"):
        build_store(corpus, store, executor=RayCluster(device="cuda"), splits=("train",))

    class Elsewhere(RayCluster):
        """Whose nodes see another folder."""

        def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
            super().run(replace(job, storage=Folder(store / "elsewhere")), tasks, progress)

    with pytest.raises(StoreError, match=r"store.json: is not there on .* that all nodes share"):
        build_store(corpus, store, executor=Elsewhere(device="cpu"), splits=("train",))


@needs_ray
@pytest.mark.slow
def test_a_cluster_compacts_a_store_of_a_relative_path_as_one_process_does(
    corpus: Corpus, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the nodes were started elsewhere
    build_store(corpus, Path("store"), SMALL, splits=("train", "val"))
    shutil.copytree("store", "one")
    executors: dict[str, Executor] = {"one": OneProcess(CPU), "store": RayCluster(device="cpu")}
    for name, executor in executors.items():
        work = Compaction(storage=Folder(Path(name)), utterances_per_shard=3)
        run_operation(work, Folder(Path(name)), executor)
    assert contents(Path("store")) == contents(Path("one"))
    assert len(list(Path("store").glob("*.tar"))) == 3


@needs_ray
@pytest.mark.slow
def test_the_command_builds_on_a_ray_of_its_own(run: Run, corpus: Corpus, store: Path, tmp_path: Path) -> None:
    outcome = run("--data_split", "train", "--executor", "ray", "--num_processes", 1)
    assert outcome.code == 0 and "5 utterances in 2 shards" in outcome.out
    build_store(corpus, tmp_path / "alone", splits=("train",))
    assert contents(store) == contents(tmp_path / "alone")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--executor", "ray", "--device", "cuda:1"), "with --executor ray, cpu or cuda; Ray chooses which"),
        (("--ray_address", "auto"), "is for --executor ray"),
    ],
)
def test_flags_that_contradict_ray_are_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    outcome = run(*words)
    assert outcome.code == 2 and said in outcome.err


def test_ranks_do_not_start_ray(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = run("--executor", "ray")
    assert outcome.code == 2 and "start the command once, without torchrun or srun" in outcome.err


@pytest.mark.usefixtures("quick")
def test_a_missing_ray_is_named_with_the_cure(corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; pip install -e '\.\[ray\]'"):
        build_store(corpus, store, executor=RayCluster(), splits=("train",))


@pytest.mark.usefixtures("quick")
def test_a_complete_store_starts_no_ray(corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    build_store(corpus, store, splits=("train",))
    assert build_store(corpus, store, executor=RayCluster(), splits=("train",)).shards == 0


class FullCluster:
    """A Ray whose cluster has no place for an actor, and that puts its own exit in the place of a handler."""

    exceptions = type("exceptions", (), {"RayError": RuntimeError})

    def __init__(self) -> None:
        self.is_connected = False
        self.killed = 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: object) -> None:
        self.is_connected = True

    def shutdown(self) -> None:
        self.is_connected = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, _kind: object) -> Any:
        return MagicMock()

    def wait(self, busy: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        return [], busy

    def kill(self, _actor: object) -> None:
        self.killed += 1


class FailingCluster(FullCluster):
    """A Ray whose actors end."""

    def wait(self, busy: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        return busy[:1], busy[1:]

    def get(self, _: object) -> None:
        raise RuntimeError("The actor died: out of memory\n")


def test_an_actor_that_ends_is_named_with_the_cure(
    corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FailingCluster())  # type: ignore[arg-type]
    said = r"store: an actor could not be started on the Ray cluster \(The actor died: out of memory\).*run the command"
    with pytest.raises(StoreError, match=said):
        build_store(corpus, store, executor=RayCluster(device="cpu"), splits=("train",))


def test_a_cluster_that_does_not_answer_is_named_with_the_cure(
    corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FullCluster()
    monkeypatch.setattr(ray, "init", MagicMock(side_effect=ConnectionError("no route")))
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    said = r"--ray_address auto: no Ray cluster answers \(no route\); start one with ray start --head, or leave"
    with pytest.raises(ConfigError, match=said):
        build_store(corpus, store, executor=RayCluster(address="auto"), splits=("train",))


def test_a_cluster_without_a_place_is_waited_for_with_words_and_not_for_ever(
    corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a thread, too, where no signal can be handled."""
    ray = FullCluster()
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(build_store, corpus, store, executor=RayCluster(device="cpu"), splits=("train",))
        with pytest.raises(StoreError, match=r"no place for an actor in 24 hours.*run the command again to resume"):
            built.result()
    assert "has found no place for an actor yet" in caplog.text
    assert ray.killed == 2 and not ray.is_connected
