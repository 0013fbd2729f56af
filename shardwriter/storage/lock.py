"""One build at a time writes to a folder: one process, or the ranks of one job."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from iianet.errors import StoreError
from shardwriter.format.names import TEMPORARY_PREFIX

LOCK_FILE = ".lock"


@contextmanager
def build_lock(folder: Path, *, patient: bool = False) -> Iterator[None]:
    """Hold a folder against other builds; the system drops the lock with the process, however it ends.

    Args:
        folder: Of the store, made if it is not there.
        patient: Wait for who holds it, instead of refusing: for what takes a moment.

    Raises:
        StoreError: Another build holds it, which is named; or the folder cannot be written, now or later.
    """
    with open_lock(folder, LOCK_FILE) as stream:
        if patient:
            wait_for_lock(folder, stream)
        elif not try_lock(folder, stream, shared=False):
            raise StoreError(f"{folder}: another build is writing to it ({holder(stream)}); wait for it or stop it")
        name_holder(stream)
        delete_leftovers(folder)
        with explained(folder):
            yield


@contextmanager
def open_lock(folder: Path, name: str) -> Iterator[IO[str]]:
    """Open a lock file of a folder, and make both where they are not. Raises StoreError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = os.fdopen(os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); choose another --shards folder") from error
    with stream:
        yield stream


def try_lock(folder: Path, stream: IO[str], *, shared: bool) -> bool:
    """Take a lock if it is free, or turn a held one into the other kind; False where others hold it."""
    return _flock(folder, stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def wait_for_lock(folder: Path, stream: IO[str]) -> None:
    """Take a lock that is held for moments only."""
    _flock(folder, stream, fcntl.LOCK_EX)


def release_lock(stream: IO[str]) -> None:
    """Let others take a lock."""
    fcntl.flock(stream, fcntl.LOCK_UN)


def _flock(folder: Path, stream: IO[str], operation: int) -> bool:
    try:
        fcntl.flock(stream, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot be locked against other builds ({error.strerror}); its file system must support flock"
        ) from error
    return True


def holder(stream: IO[str]) -> str:
    """Who holds a lock, in words."""
    stream.seek(0)
    return stream.read().strip()


def name_holder(stream: IO[str], who: str = "") -> None:
    """Write into a lock who holds it."""
    stream.seek(0)
    stream.truncate()
    stream.write(f"{who}process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
    stream.flush()


def delete_leftovers(folder: Path) -> None:
    """Delete what builds that died were writing; only where none is alive but us."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink(missing_ok=True)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say what to do where the folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder}: {error.strerror or error}. Every published shard is whole; make room or "
            "fix the folder, and run the command again to resume."
        ) from error
