"""Fixtures of all tests."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny tensors gain nothing from more, and tests start many

import pytest
from helpers.builds import quick_encoder
from helpers.raised import never_made, note_errors

if TYPE_CHECKING:
    from helpers.s3 import S3Server

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts behind itself, with "&"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--raised", metavar="FILE", help="note where errors of ours are made, and list where none was")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--raised"):
        path = Path(file).absolute()
        if not hasattr(config, "workerinput"):  # the process that starts the others
            path.unlink(missing_ok=True)
        note_errors(path)


@pytest.hookimpl(optionalhook=True)  # of a plugin that may be left out
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: one more than there are cores, for tests wait for a sixth of their time."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    gc.set_threshold(20_000)
    gc.freeze()  # what was imported stays: the collector would look through it again and again


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if file := config.getoption("--raised"):
        left = never_made(Path(file).absolute())
        terminalreporter.section(f"{len(left)} places that make errors, and made none")
        for place in left:
            terminalreporter.line(place)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Let builds of this module encode with a QuickEncoder."""
    with quick_encoder():
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator["S3Server"]:
    """Run an S3 server for the tests of a module; `helpers.bucket.bucket` empties it for each."""
    from helpers.s3 import s3_server  # here, so that tests that use none do not load it

    with s3_server() as running:
        yield running
