"""Several processes on one machine: the same store as one makes, whoever of them dies."""

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.builds import CPU, Run, build_store, contents, opened, reasons
from helpers.corpus import Corpus, make_corpus

from iianet.errors import ConfigError, StoreError, WeightsError
from iianet.launch import choose_devices
from shardwriter.build.build import build, prepare
from shardwriter.build.options import BuildOptions
from shardwriter.encode.encoded import EncodedClips
from shardwriter.encode.write_shards import Stored
from shardwriter.execute import processes
from shardwriter.execute.executor import Job
from shardwriter.execute.operation import run_operation
from shardwriter.execute.processes import CLAIM, Processes
from shardwriter.format.files import temporary_path
from shardwriter.storage.folder import Folder

SMALL = "shardwriter.utterances_per_shard=1"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 5, "val": 2, "test": 2})


@pytest.fixture(scope="module")
def alone(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process makes."""
    store = tmp_path_factory.mktemp("alone")
    build_store(corpus, store, SMALL)
    return store


def test_two_processes_make_the_store_that_one_makes(run: Run, corpus: Corpus, store: Path, alone: Path) -> None:
    outcome = run("--num_processes", 2, "--set", SMALL)
    assert outcome.code == 0, outcome.err
    assert "9 utterances in 9 shards" in outcome.out
    assert outcome.err.count("RANDOM weights") == 1
    assert contents(store) == contents(alone)
    assert not list(store.glob(".tmp-*"))
    assert "Nothing to do: everything is stored already." in run("--num_processes", 2, "--set", SMALL).out


@pytest.mark.slow
def test_processes_report_failures_audio_and_overwrite(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    own = make_corpus(tmp_path / "own", {"train": 5, "val": 2})
    own.mouth("tr_001").unlink()
    words = ("--conf_dir", own.config_file, "--data_split", "train", "--audio", "embed", "--num_processes", 2)
    for more in ((), ("--overwrite",)):
        outcome = run(*words, *more)
        assert outcome.code == 3
        assert "train mouths/tr_001.npz: cannot be read" in outcome.out
        assert "4 utterances in 2 shards" in outcome.out and "MB of it audio" in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [1, 2])
def test_killed_processes_leave_their_shards_to_the_others(
    corpus: Corpus, store: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    """Each of the first ones is killed when it has told of its first utterance: its shard is not complete then."""
    told = processes._Crew._take
    killed: list[int] = []

    def take(crew: processes._Crew, worker: processes._Worker, message: object) -> None:
        told(crew, worker, message)  # type: ignore[arg-type]
        if isinstance(message, Stored) and len(killed) < deaths and worker.process.pid not in killed:
            assert worker.process.pid is not None
            killed.append(worker.process.pid)
            own = temporary_path(store / "half").name
            (store / own.replace(f"-{os.getpid()}-", f"-{worker.process.pid}-")).touch()
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.join()

    monkeypatch.setattr(processes._Crew, "_take", take)
    options = BuildOptions(device=CPU, executor=Processes([CPU, CPU, CPU]))
    report = build(corpus.config(SMALL), Folder(store), options)
    assert len(killed) == deaths
    assert report.stored == {"train": 5, "val": 2, "test": 2}
    assert contents(store) == contents(alone)
    assert not list(store.glob(".tmp-*"))


@pytest.mark.slow
def test_a_run_ends_when_no_process_is_left(corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = processes._Crew._take

    def take(crew: processes._Crew, worker: processes._Worker, message: object) -> None:
        told(crew, worker, message)  # type: ignore[arg-type]
        if message == CLAIM:
            assert worker.process.pid is not None
            os.kill(worker.process.pid, signal.SIGKILL)

    monkeypatch.setattr(processes._Crew, "_take", take)
    with pytest.raises(StoreError, match=r"ended by signal 9, and no other is left.*fewer --num_processes"):
        build_store(corpus, store, SMALL, executor=Processes([CPU, CPU]))
    assert not multiprocessing.active_children()
    assert not list(store.glob(".tmp-*"))


@pytest.mark.slow
def test_what_a_process_refuses_ends_the_build(corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepare(corpus.config(SMALL), Folder(store), BuildOptions(device=CPU))
    job = made.job

    def other_job() -> Job:
        """The job as processes with other weights see it."""
        own = job()
        assert isinstance(own.source, EncodedClips)
        other = corpus.config(SMALL, "videonet.videonet_config.seed=1")
        return replace(own, source=replace(own.source, encoder_source=other.encoder_source()))

    monkeypatch.setattr(made, "job", other_job)
    with pytest.raises(WeightsError, match="not the same on every machine"):
        run_operation(made, Folder(store), Processes([CPU, CPU]))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_build_that_lost_the_store_ends_its_processes(
    corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They publish without asking, since they do not hold it."""

    def lost(_: Folder) -> None:
        raise StoreError("the lease of this build was deleted or taken over")

    monkeypatch.setattr(Folder, "check_lock", lost)
    with pytest.raises(StoreError, match="was deleted or taken over"):
        build_store(corpus, store, SMALL, executor=Processes([CPU, CPU]))
    assert not multiprocessing.active_children()
    assert not list(store.glob("*.tar"))


@pytest.mark.slow
def test_processes_that_do_nothing_for_long_are_said_to(
    corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "CHECK_SECONDS", 0.01)  # which is over before a process has started
    build_store(corpus, store, SMALL, executor=Processes([CPU, CPU]))
    assert "no process has encoded anything for" in caplog.text and "stop the build and run it again" in caplog.text


@pytest.mark.slow
def test_a_fault_of_a_process_ends_the_build(corpus: Corpus, store: Path) -> None:
    executor = Processes([torch.device("meta")] * 2)  # which encodes nothing that could be stored
    with pytest.raises(StoreError, match=r"the process on meta failed with exit code 1; its message is above"):
        build_store(corpus, store, SMALL, executor=executor)
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(tmp_path: Path, store: Path, number: signal.Signals) -> None:
    """Whatever ends the parent; what all of them hold open closes with the last of them."""
    corpus = make_corpus(tmp_path / "long", {"train": 24, "val": 2, "test": 2}, frames=20)
    words = ["--conf_dir", corpus.config_file, "--shards", store, "--device", "cpu", "--set", SMALL]
    command = [sys.executable, "-m", "shardwriter.build_cli", *map(str, words), "--num_processes", "2"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    assert started.stderr is not None
    said = b""
    while not re.search(rb"stored=[1-9]", said):
        more = os.read(started.stderr.fileno(), 1 << 16)
        assert more, said.decode()
        said += more
    if number == signal.SIGINT:
        os.killpg(started.pid, number)  # as a terminal does
    else:
        started.kill()
    said += started.stderr.read()
    assert started.wait() != 0
    assert b"Traceback" not in said, said.decode()
    report = build_store(corpus, store, SMALL)
    assert 0 < sum(report.stored.values()) < 28
    build_store(corpus, tmp_path / "alone", SMALL)
    assert contents(store) == contents(tmp_path / "alone")
    assert not list(store.glob(".tmp-*"))


@pytest.mark.slow
def test_fewer_tasks_than_processes_start_no_more_than_needed(
    corpus: Corpus, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hired: list[int] = []
    hire = processes._Crew.hire

    def count(crew: processes._Crew, devices: list[torch.device]) -> None:
        hire(crew, devices)
        hired.append(len(crew.workers))

    monkeypatch.setattr(processes._Crew, "hire", count)
    report = build_store(corpus, store, executor=Processes([CPU] * 5), splits=("train",))
    assert hired == [2] and report.shards == 2
    report = build_store(corpus, store, executor=Processes([CPU] * 5), splits=("train",))
    assert sum(hired) == 2 and reasons(report, "train") == {"skipped": 5}


def test_a_sent_task_takes_no_more_than_its_rows_along(alone: Path) -> None:
    snapshot = opened(alone)
    (header,) = snapshot.active
    task = next(snapshot.plan(header).tasks(["train"]))
    sent = pickle.dumps(task.alone())
    assert len(sent) < len(pickle.dumps(task))
    received = pickle.loads(sent)
    assert received.shard == task.shard and received.rows.equals(task.rows)


@pytest.mark.parametrize(
    ("names", "num_processes", "expected"),
    [
        ("cuda", 1, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:0,cuda:2", 1, ["cuda:0", "cuda:2"]),
        ("cuda:1", 2, ["cuda:1", "cuda:1"]),
        ("cpu", 2, ["cpu", "cpu"]),
        (None, 1, ["cuda:0"]),
        (None, 2, ["cuda:0", "cuda:0"]),
    ],
)
def test_devices_are_those_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, names: str | None, num_processes: int, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [str(device) for device in choose_devices(names, num_processes)] == expected
    with pytest.raises(ConfigError, match="--device cuda:3: found 3 GPUs, expected one from cuda:0 to cuda:2"):
        choose_devices("cuda:0,cuda:3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "cpu,cpu"), "--num_processes N starts N processes on each"),
        *(
            (("--device", f"cpu,{name}"), f"--device {name}: found '{name}', expected cpu, cuda or cuda:N")
            for name in ("gpu", "mps", "xpu", "meta", "cpu:1", "cuda:-1", "cuda:0_1", "")
        ),
        (("--device", ""), "--device : found '', expected cpu, cuda or cuda:N"),
        (("--device", "cuda"), "--device cuda: no GPU found; use --device cpu, or leave --device out"),
        (("--num_processes", "0"), "--num_processes: found '0', expected a whole number above 0"),
    ],
)
def test_wrong_devices_are_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    outcome = run(*words)
    assert outcome.code == 2 and said in outcome.err
