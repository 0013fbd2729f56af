"""What commands write to a terminal, a pipe and a log file, and what of the process they leave as it was."""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from iianet.command_line import run_command
from iianet.errors import OutputError, StoreError
from iianet.interruption import terminable
from iianet.terminal import PrintableFormatter, say

HOSTILE = "red \x1b[31m, c1 \x9b, turned \u202e, bytes \udcff"
SHOWN = r"red \x1b[31m, c1 \x9b, turned \u202e, bytes \udcff"
LINES = 3_000
"""More than a pipe holds."""


def results(argv: list[str]) -> int:
    """A command that prints a lot, logs, and finds problems."""
    for number in range(LINES):
        say(f"line {number} of 嘴 {HOSTILE}")
    logging.getLogger("ours").warning("after %s", HOSTILE)
    return int(argv[0])


def fails(_: list[str]) -> int:
    raise StoreError(f"key {HOSTILE}: no such utterance")


def started(program: str, *, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python code in a shell, so that what it writes can be redirected."""
    imports = "import sys; from iianet.command_line import run_command; from test_terminal import *; "
    shell = f'"{sys.executable}" -c "$PROGRAM" {redirect}'
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell],
        env={**os.environ, "PYTHONPATH": path, "PROGRAM": imports + program, **environment},
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_nothing_that_a_terminal_would_obey_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: list[str]) -> int:
        say(f"key {HOSTILE}")
        logging.getLogger("ours").warning("index %s", HOSTILE)
        return fails([])

    assert run_command(command, []) == 2
    captured = capsys.readouterr()
    assert captured.out == f"key {SHOWN}\n"
    assert captured.err == f"WARNING: index {SHOWN}\nerror: key {SHOWN}: no such utterance\n"


def test_a_log_file_holds_nothing_that_a_terminal_would_obey(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "log", encoding="utf-8")
    handler.setFormatter(PrintableFormatter("%(message)s"))
    handler.emit(logging.LogRecord("ours", logging.INFO, "", 0, "path %s", (HOSTILE,), None))
    handler.close()
    assert (tmp_path / "log").read_text(encoding="utf-8") == f"path {SHOWN}\n"


@pytest.mark.parametrize("code", [0, 1])
def test_a_terminal_that_knows_ascii_alone_changes_no_exit_code(code: int) -> None:
    done = started(f"sys.exit(run_command(results, ['{code}']))", PYTHONIOENCODING="ascii:strict")
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[0] == rf"line 0 of \u5634 {SHOWN}".encode()
    assert done.stderr.decode() == f"WARNING: after {SHOWN}\n"


@pytest.mark.parametrize("code", [0, 1])
def test_a_reader_who_has_seen_enough_ends_nothing(code: int) -> None:
    done = started(f"sys.exit(run_command(results, ['{code}']))", redirect="| head -1")
    assert done.returncode == code, done.stderr
    assert done.stdout.count(b"\n") == 1
    assert done.stderr.decode() == f"WARNING: after {SHOWN}\n"


def test_a_log_that_nobody_reads_on_ends_nothing() -> None:
    done = started("sys.exit(run_command(results, ['1']))", redirect="2>&1 | head -1")
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_bar_that_nobody_reads_on_ends_nothing() -> None:
    bar = "[None for _ in tqdm(range(10**4), mininterval=0)]"
    command = f"from tqdm import tqdm\ndef command(argv):\n    {bar}\n    return 0\n"
    done = started(f"\n{command}sys.exit(run_command(command, []))", redirect="2>&1 | head -c 1")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_under_stdout_is_an_error_of_ours() -> None:
    done = started("sys.exit(run_command(results, ['0']))", redirect="> /dev/full")
    assert done.returncode == 2
    said = "error: stdout: cannot be written (No space left on device); make room where it is written to, or write it"
    assert done.stderr.decode().startswith(said)
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_nothing_and_no_file_takes_their_place(redirect: str, tmp_path: Path) -> None:
    command = f"""
from tqdm import tqdm
def command(argv):
    with open("{tmp_path / "shard"}", "wb") as shard:
        for number in (1, 2):
            os.write(number, b"what a library says")
        [None for _ in tqdm(range(3))]
    return 0 if results(["0"]) == 0 and shard.closed else 2
sys.exit(run_command(command, []))
"""
    assert started(command, redirect=redirect).returncode == 0
    assert (tmp_path / "shard").read_bytes() == b""


def test_a_command_leaves_logging_and_streams_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        before = (list(root.handlers), root.level, logging.getLogger("botocore").level, sys.stdout.errors)
        assert [run_command(lambda argv: len(argv), ["a"]) for _ in range(2)] == [1, 1]
        assert run_command(fails, []) == 2
        assert (list(root.handlers), root.level, logging.getLogger("botocore").level, sys.stdout.errors) == before
    finally:
        root.removeHandler(handler)


def test_a_command_runs_in_a_thread_and_leaves_signals_alone() -> None:
    before, codes = signal.getsignal(signal.SIGTERM), []

    def command(_: list[str]) -> int:
        with terminable():
            return 7

    thread = threading.Thread(target=lambda: codes.append(run_command(command, [])))
    thread.start()
    thread.join()
    assert codes == [7]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_is_not_of_python_is_replaced_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    set_signal, calls = signal.signal, []

    def unknown(number: int, handler: object) -> None:
        calls.append(handler)
        set_signal(number, handler)  # type: ignore[arg-type]

    monkeypatch.setattr(signal, "signal", unknown)  # returns None, as for a handler of a library
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        pass
    assert calls[-1] is signal.SIG_DFL
    set_signal(signal.SIGTERM, before)


def test_what_cannot_be_printed_says_where_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OutputError, match=r"stdout: cannot be written \(No space left on device\); make room"):
            say("a result")
        say("and no more errors")
