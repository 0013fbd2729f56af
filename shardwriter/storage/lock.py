"""One build at a time writes to a store: one process, or the ranks of one job."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from iianet.errors import StoreError
from shardwriter.format.names import LOCK_FILE, TEMPORARY_PREFIX


@contextmanager
def build_lock(store: Path, *, patient: bool = False) -> Iterator[None]:
    """Hold a store against other builds; the system drops the lock with the process, however it ends.

    Args:
        store: Its folder, made if it is not there.
        patient: Wait for who holds it, instead of refusing: for what takes a moment.

    Raises:
        StoreError: Another build holds it, which is named; or the folder cannot be written, now or later.
    """
    with open_lock(store, LOCK_FILE) as stream:
        if patient:
            wait_for_lock(store, stream)
        elif not try_lock(store, stream, shared=False):
            raise StoreError(f"{store}: another build is writing to it ({holder(stream)}); wait for it or stop it")
        name_holder(stream)
        drop_leftovers(store)
        with explained(store):
            yield


@contextmanager
def open_lock(store: Path, name: str) -> Iterator[IO[str]]:
    """Open a lock file of a store, and make both where they are not. Raises StoreError where that cannot be."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        stream = os.fdopen(os.open(store / name, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    except OSError as error:
        raise StoreError(f"{store}: cannot be written ({error.strerror}); choose another --shards folder") from error
    with stream:
        yield stream


def try_lock(store: Path, stream: IO[str], *, shared: bool) -> bool:
    """Take a lock if it is free, or turn a held one into the other kind; False where others hold it."""
    return _flock(store, stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def wait_for_lock(store: Path, stream: IO[str]) -> None:
    """Take a lock that is held for moments only."""
    _flock(store, stream, fcntl.LOCK_EX)


def release_lock(stream: IO[str]) -> None:
    """Let others take a lock."""
    fcntl.flock(stream, fcntl.LOCK_UN)


def _flock(store: Path, stream: IO[str], how: int) -> bool:
    try:
        fcntl.flock(stream, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"{store}: cannot be locked against other builds ({error.strerror}); its file system must know flock"
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


def drop_leftovers(store: Path) -> None:
    """Delete what builds that died were writing; only where none is alive but us."""
    for leftover in store.glob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink(missing_ok=True)


@contextmanager
def explained(store: Path) -> Iterator[None]:
    """Say what to do where the store cannot be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or store}: {error.strerror or error}. Every published shard is whole; make room or "
            "mend the folder, and run the command again to go on."
        ) from error
