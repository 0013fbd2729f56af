"""One build at a time writes to a folder: one process, or the ranks of one job."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from iianet.errors import StoreError, UnreachableError
from iianet.regular_file import open_regular
from shardwriter.format.files import delete_temporary_files

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
LOCK_FILE_ALONE = ".locked"
"""Is there while a build runs, where the file system has no locks."""
SAY_AFTER_SECONDS = 5.0
"""After so long, whoever waits for a lock says so."""
MOMENT_SECONDS = 600.0
"""Longest wait for what is held for moments."""
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_LONGEST_HOLDER = 500
RESUME = ". Every published shard is whole; make room or fix the folder, and run the command again to resume"


class NoLocks(StoreError):
    """A file system has no locks."""


@contextmanager
def build_lock(folder: Path, *, patient: bool = False) -> Iterator[None]:
    """Hold a folder against other builds; the system drops the lock with the process, however it ends.

    Where the file system has no locks, a file stands for the lock, which a process that is killed leaves behind.

    Args:
        folder: Of the store, made if it is not there.
        patient: Wait for who holds it, instead of refusing: for what takes a moment.

    Raises:
        StoreError: Another build holds it, which is named; or the folder cannot be written, now or later.
    """
    with open_lock(folder, LOCK_FILE) as stream, ExitStack() as held:
        with explained(folder):
            try:
                _hold(lambda: try_lock(stream, folder, shared=False), folder, lambda: holder(stream), patient)
            except NoLocks:
                held.enter_context(_lock_file(folder, patient))
            name_holder(stream)
            delete_temporary_files(folder)
        yield


@contextmanager
def _lock_file(folder: Path, patient: bool) -> Iterator[None]:
    """Hold a folder by a file that is there, as `build_lock` does by a lock; for file systems without locks."""
    path = folder / LOCK_FILE_ALONE

    def make() -> bool:
        try:
            path.open("x").close()
        except FileExistsError:
            return False
        return True

    def who() -> str:
        found = "which has ended just now"
        with suppress(FileNotFoundError), os.fdopen(open_regular(path)) as other:
            found = holder(other)
        return f"{found}; its file system has no locks: if that build was killed, delete {path}"

    _hold(make, folder, who, patient)
    try:
        with path.open("r+") as stream:
            name_holder(stream)
        logger.warning(
            "%s: its file system has no locks, so %s says who builds; and what a build replaces stays there, since who "
            "reads it cannot be seen",
            folder,
            path.name,
        )
        yield
    finally:
        path.unlink(missing_ok=True)


def _hold(take: Callable[[], bool], folder: Path, who: Callable[[], str], patient: bool) -> None:
    """Take what others may hold, or wait for it, see `build_lock`; `who` says who they are."""
    if patient:
        _wait_until(take, folder, MOMENT_SECONDS, who)
    elif not take():
        raise StoreError(f"{folder}: another build is writing to it ({who()}); wait for it or stop it")


@contextmanager
def open_lock(folder: Path, name: str) -> Iterator[IO[str]]:
    """Open a lock file of a folder, and make both where they are not. Raises StoreError where that cannot be."""
    with explained(folder, "; choose another --shards folder"):
        folder.mkdir(parents=True, exist_ok=True)
    cure = "; fix its rights, or delete it where it is no file of a build; or choose another --shards folder"
    with explained(folder / name, cure):
        stream = os.fdopen(open_regular(folder / name, os.O_RDWR | os.O_CREAT), "r+")
    with stream:
        yield stream


def try_lock(stream: IO[Any] | int, where: Path | str, *, shared: bool) -> bool:
    """Take a lock if it is free, or turn a held one into the other kind; False where others hold it.

    Args:
        stream: Or the descriptor, of the file that is locked.
        where: What users call what it guards.
        shared: Whether others may hold it as well.

    Raises:
        StoreError: It cannot be locked.
    """
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        kind = NoLocks if error.errno in _NO_LOCKS else StoreError
        raise kind(
            f"{where}: cannot be locked (flock: {error.strerror}). Ranks need a file system with locks: name a folder "
            "on one, or start one build-shards alone, with --device cuda for all GPUs of its machine"
        ) from error
    return True


def wait_for_lock(
    stream: IO[Any] | int, where: Path | str, seconds: float, who: Callable[[], str], *, shared: bool = False
) -> None:
    """Take a lock that others hold for a while.

    Args:
        stream: Or the descriptor, of the file that is locked.
        where: What users call what it guards.
        seconds: How long to wait at most.
        who: Says in words who holds it.
        shared: Whether others may hold it as well.

    Raises:
        StoreError: It was not given up, or cannot be locked.
    """
    _wait_until(lambda: try_lock(stream, where, shared=shared), where, seconds, who)


def _wait_until(take: Callable[[], bool], where: Path | str, seconds: float, who: Callable[[], str]) -> None:
    """Try to take what others hold again and again. Raises StoreError where they do not give it up."""
    start, pause, is_said = time.monotonic(), 0.002, False
    while not take():
        waited = time.monotonic() - start
        if waited > seconds:
            raise UnreachableError(
                f"{where}: is held by {who()}, for more than {seconds / 60:.0f} minutes. If that hangs, end it, then "
                "run the command again"
            )
        if waited > SAY_AFTER_SECONDS and not is_said:
            logger.warning("%s: waiting for %s, for %.0f minutes at most", where, who(), seconds / 60)
            is_said = True
        time.sleep(pause)
        pause = min(2 * pause, 0.2)


def release_lock(stream: IO[Any]) -> None:
    """Let others take a lock; of a file system without locks, which knows no releasing either, there is none."""
    with suppress(OSError):
        fcntl.flock(stream, fcntl.LOCK_UN)


def holder(stream: IO[str]) -> str:
    """Who holds a lock, in words."""
    found = os.pread(stream.fileno(), _LONGEST_HOLDER, 0).decode(errors="replace")
    return found.strip() or "a process that has not said its name"


def name_holder(stream: IO[str], who: str = "") -> None:
    """Write into a lock who holds it; at once, for what a full disk refuses must not come up when it is closed."""
    name = f"{who}process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
    os.ftruncate(stream.fileno(), 0)
    os.pwrite(stream.fileno(), name.encode(), 0)


@contextmanager
def explained(path: Path, cure: str = RESUME) -> Iterator[None]:
    """Say what to do where a path cannot be written; only around writing, for other errors are not of the store.

    Raises:
        UnreachableError: It cannot be written. A FileNotFoundError that names no path is of what was to be copied.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename is None:
            raise
        raise UnreachableError(
            f"{error.filename2 or error.filename or path}: cannot be written ({error.strerror or error}){cure}"
        ) from error
