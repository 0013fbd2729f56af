"""One training at a time writes to a run's folder, and what it writes is there whole or not at all."""

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from iianet.errors import ConfigError, TrainingError
from iianet.interruption import Terminated
from iianet.run_folder import LOCK_FILE, RunFolder, refuse_unwritable, refusing_full_disk, replacing

HOLD = """
import sys
from pathlib import Path
from iianet.run_folder import RunFolder
with RunFolder(Path(sys.argv[1]), "run").claimed(fresh=False):
    print("held", flush=True)
    sys.stdin.read()
"""
CLONE = Path(__file__).parents[2]


@contextmanager
def other_training(parent: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which writes to parent/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parent)], cwd=CLONE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate()


@pytest.mark.parametrize("fresh", [True, False])
def test_a_second_training_is_refused_and_moves_nothing(tmp_path: Path, fresh: bool) -> None:
    folder = RunFolder(tmp_path, "run")
    with other_training(tmp_path) as process:
        folder.last.write_bytes(b"of the first")
        with pytest.raises(ConfigError) as refusal, folder.claimed(fresh):
            pass
        for words in (str(folder.path), f"process {process.pid} on {socket.gethostname()}, since 20", "exp.exp_name="):
            assert words in str(refusal.value)
        assert folder.last.read_bytes() == b"of the first"
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with folder.claimed(fresh=False):
        assert folder.last.exists()


def test_a_killed_training_holds_nothing(tmp_path: Path) -> None:
    with other_training(tmp_path) as process:
        process.kill()
        process.wait()
        with RunFolder(tmp_path, "run").claimed(fresh=True):
            pass


def test_without_locks_the_record_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a file system that does not support them."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    folder = RunFolder(tmp_path, "run")
    with other_training(tmp_path) as process:
        with pytest.raises(ConfigError, match=rf"process {process.pid} on .*If it has ended, delete .*\.running"):
            folder.claimed(fresh=False).__enter__()
        process.kill()
        process.wait()
    with folder.claimed(fresh=False):
        assert "its file system has no locks; .running says who is training there" in caplog.text
    (folder.path / LOCK_FILE).write_text('["another-host", 1, "2026-01-01 00:00:00"]')
    with pytest.raises(ConfigError, match="process 1 on another-host, since 2026-01-01"):
        folder.claimed(fresh=False).__enter__()


def test_earlier_runs_are_moved_aside_and_all_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = RunFolder(tmp_path, "run")
    (tmp_path / "run-before-20260101-000000").mkdir()
    with folder.claimed(fresh=True):
        folder.last.write_bytes(b"first")
    with folder.claimed(fresh=True):
        assert not folder.last.exists()
    assert "2 earlier runs are kept beside it: run-before-20260101-000000, run-before-2" in caplog.text
    (kept,) = (path for path in tmp_path.glob("run-before-*") if (path / "last.ckpt").exists())
    assert str(kept) in caplog.text


def test_fragments_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    folder.path.mkdir()
    (folder.path / "epoch=3.ckpt.partial").write_bytes(b"half")
    with folder.claimed(fresh=False):
        assert [path.name for path in folder.path.iterdir()] == [LOCK_FILE]


def test_a_folder_that_lies_where_a_file_is_written_is_named_and_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    (folder.path / "last.ckpt.partial" / "thesis").mkdir(parents=True)
    said = r"last\.ckpt\.partial is a folder, expected a file that is being written; move it away"
    with (
        pytest.raises(ConfigError, match=rf"run: results cannot be written there: {said}"),
        folder.claimed(fresh=False),
    ):
        pass
    with pytest.raises(TrainingError, match=rf"last\.ckpt: cannot be written: {said}"), replacing(folder.last):
        pass
    assert (folder.path / "last.ckpt.partial" / "thesis").is_dir()
    (folder.path / "epoch=1.ckpt").mkdir()
    said = r"epoch=1\.ckpt: cannot be written: Is a directory"
    with pytest.raises(TrainingError, match=said), replacing(folder.path / "epoch=1.ckpt") as stream:
        stream.write(b"new")


def test_a_training_that_comes_in_between_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the moving aside of an earlier run and the lock of the new folder."""
    folder, lockf = RunFolder(tmp_path, "run"), fcntl.lockf
    with folder.claimed(fresh=True):
        folder.last.write_bytes(b"first")

    def refuse_the_new(lock: IO[str], how: int) -> None:
        if list(tmp_path.glob("run-before-*")):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        lockf(lock, how)

    monkeypatch.setattr(fcntl, "lockf", refuse_the_new)
    with pytest.raises(ConfigError, match="is training there; expected one training at a time"):
        folder.claimed(fresh=True).__enter__()


@pytest.mark.parametrize("make", [lambda path: path.symlink_to(path.parents[1] / "victim"), os.mkfifo, os.mkdir])
def test_a_lock_file_that_is_something_else_is_refused(tmp_path: Path, make: object) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    folder = RunFolder(tmp_path, "run")
    folder.path.mkdir()
    make(folder.path / LOCK_FILE)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="results cannot be written there"):
        folder.claimed(fresh=False).__enter__()
    assert victim.read_text() == "kept"


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exp\.exp_name: n+\.\.\. has 300 bytes, expected at most 232.*shorter"):
        RunFolder(tmp_path, "n" * 300)
    with RunFolder(tmp_path, "n" * 232).claimed(fresh=False):
        pass


def test_a_place_that_takes_no_files_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"file/run: results cannot be written there: Not a directory.*--exp_dir DIR"):
        RunFolder(tmp_path / "file", "run").claimed(fresh=True).__enter__()
    with pytest.raises(ConfigError, match=r"file/below: results cannot be written there: Not a directory"):
        refuse_unwritable(tmp_path / "file" / "below")
    refuse_unwritable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_is_refused_before_anything_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path, "run")
    with folder.claimed(fresh=True):
        folder.last.write_bytes(b"first")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(ConfigError, match=r"its disk has 1 MB left; expected at least 5 MB.*Make room"):
        folder.claimed(fresh=True, room=5 * 10**6).__enter__()
    assert folder.last.read_bytes() == b"first"


def test_what_cannot_be_written_leaves_what_was_there_and_no_fragment(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"before")
    with pytest.raises(TrainingError) as refusal, replacing(path) as stream:
        stream.write(b"half")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc]")  # as torch.save raises over it
    assert str(path) in str(refusal.value)
    assert "No space left on device" in str(refusal.value)
    assert "then try again; a training resumes with --resume last" in str(refusal.value)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("foreign", [KeyboardInterrupt(), Terminated(), ValueError("a figure"), KeyError("a name")])
def test_what_the_file_system_did_not_say_passes_through(tmp_path: Path, foreign: BaseException) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"before")
    with pytest.raises(type(foreign)) as found, replacing(path) as stream:
        stream.write(b"half")
        try:
            raise FileNotFoundError(errno.ENOENT, "a font that was looked for", "font.ttf")
        except FileNotFoundError:
            raise foreign  # noqa: B904
    assert found.value is foreign
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"before", [path])


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "conf.yml"
    victim.write_text("kept")
    path.symlink_to(victim)
    path.with_name("conf.yml.partial").symlink_to(victim)
    with replacing(path) as stream:
        stream.write(b"new")
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("kept", "new", False)


def test_a_lock_that_fails_otherwise_is_not_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "lockf", fail)
    with pytest.raises(ConfigError, match="results cannot be written there: Input/output error"):
        RunFolder(tmp_path, "run").claimed(fresh=False).__enter__()


def test_a_disk_that_is_full_for_loggers_is_a_sentence_and_other_errors_stay(tmp_path: Path) -> None:
    with (
        pytest.raises(
            TrainingError,
            match=r"metrics\.csv: cannot be written: No space left on device.*then resume with --resume last",
        ),
        refusing_full_disk(tmp_path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.csv")
    with pytest.raises(FileNotFoundError), refusing_full_disk(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "a wav", "a.wav")
