"""SIGTERM ends a run with its own exit code and a checkpoint; resuming from there is in test_exact_resume.py."""

import io
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.corpus import Corpus
from helpers.recorder import Stop, recorded, steps
from helpers.runs import RESULTS, TRAIN, last, run

from iianet.training.lightning_module import SeparationModule
from iianet.training.termination import Termination


@pytest.mark.parametrize("stage", ["train", "validation"])
def test_sigterm_saves_and_ends_with_its_own_code(
    corpus: Corpus, store: Path, here: Path, stage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with recorded(here / "record", Stop(stage, 3, "SIGTERM")):
        code, folder = run(corpus, "--shards", store, "--set", "training.epochs=3")
    assert code == 143
    assert last()["global_step"] == len(steps(here / "record")) == {"train": 3, "validation": 10}[stage]
    assert last()["validation_is_due"] == (stage == "validation")
    assert (folder / "best_model.pth").exists() == (stage == "validation"), "written with each new best epoch"
    said = capfd.readouterr().err
    assert "SIGTERM received: finishing and saving this step first" in said
    assert "resume with --resume last" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_all_processes_of_a_run_saves_too(
    corpus: Corpus, store: Path, here: Path, number: signal.Signals
) -> None:
    """As Slurm sends it: loader workers get it as well."""
    command = [sys.executable, TRAIN, "--conf_dir", corpus.config_file, "--shards", store]
    workers = [
        "--set",
        "training.epochs=10000",
        "training.early_stop.patience=100000",
        "datamodule.data_config.num_workers=1",
    ]
    process = subprocess.Popen([*command, *workers], stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "train loss" in line:  # said after the first epoch
            break
    os.killpg(process.pid, number)
    message = process.stderr.read()
    assert process.wait(60) == 143, message[-2000:]
    assert "--resume last" in message
    assert (RESULTS / "last.ckpt").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_before_the_first_step_ends_at_once_with_its_own_code(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(one) for one in numbers]
    monkeypatch.setattr(SeparationModule, "on_fit_start", lambda _: signal.raise_signal(number))
    assert run(corpus, "--shards", store)[0] == code
    assert not (RESULTS / "last.ckpt").exists()
    assert [signal.getsignal(one) for one in numbers] == before


class Busy(io.StringIO):
    """A stream that a signal interrupts in the middle of a write, which it cannot do twice at a time."""

    def write(self, text: str) -> int:
        if self.getvalue() == "":
            super().write("half a ")
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            return super().write(text)
        raise RuntimeError("reentrant call")


def test_a_signal_that_comes_in_the_middle_of_a_line_writes_to_no_stream(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stream, log = Busy(), logging.getLogger("iianet")
    handler = logging.StreamHandler(stream)
    handler.terminator = ""
    handler.handleError = _raise  # type: ignore[method-assign]
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(one) for one in numbers]
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "level", logging.INFO)
    termination = Termination()
    try:
        termination.listen()
        log.info("line")
    finally:
        for number, one in zip(numbers, before, strict=True):
            signal.signal(number, one)
    assert termination.is_asked and stream.getvalue() == "half a line"
    said = capfd.readouterr().err
    assert "SIGTERM received: finishing and saving" in said and "interrupted: finishing and saving" in said


def test_a_signal_is_heeded_where_nobody_reads_what_is_said() -> None:
    """As after `2>&1 | head`, or when the terminal was closed."""
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(2)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(one) for one in numbers]
    termination = Termination()
    try:
        os.dup2(writer, 2)
        termination.listen()
        signal.raise_signal(signal.SIGTERM)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
        for number, one in zip(numbers, before, strict=True):
            signal.signal(number, one)
    assert termination.is_asked


def _raise(_: logging.LogRecord) -> None:
    raise


def test_a_second_interruption_ends_at_once(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_twice(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SeparationModule, "training_step", interrupt_twice)
    assert run(corpus, "--shards", store)[0] == 130
    assert not (RESULTS / "last.ckpt").exists()


LONELY = """
import sys
from iianet.training import termination
from iianet_cli.train_cli import main
termination.FIRST_SECONDS = termination.LINE_SECONDS = 0.1
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("node", "number", "code"), [pytest.param(0, signal.SIGINT, 130, marks=pytest.mark.slow), (1, signal.SIGTERM, 143)]
)
def test_a_training_that_waits_for_its_other_node_says_so_and_ends_on_signals(
    corpus: Corpus, store: Path, here: Path, node: int, number: signal.Signals, code: int
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--conf_dir", corpus.config_file, "--shards", store, "--set", "training.num_nodes=2"]
    paths = f"{TRAIN.parent}:{os.environ.get('PYTHONPATH', '')}"
    places = {"NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": paths}
    settings = ["datamodule.data_config.batch_size=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", LONELY, *words, *settings],
        env={**os.environ, **places},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "waiting for" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    assert f"waiting for the other ranks, 2 on 2 machines, at 127.0.0.1:{port}, for 0 s now" in said
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(20) == code, rest[-2000:]
    assert "Traceback" not in rest
    assert rest.endswith("interrupted\n" if number == signal.SIGINT else "terminated\n")
