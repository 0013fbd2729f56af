"""Files that appear whole or not at all: written beside their place, synced, renamed."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO

from shardwriter.format.names import TEMPORARY_PREFIX

_counter = count()


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process or thread uses."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{_process(os.getpid())}-{next(_counter)}")


def delete_temporary_files(folder: Path, pid: int) -> None:
    """Delete what a process of this machine was writing when it ended."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*-{_process(pid)}-*"):
        leftover.unlink(missing_ok=True)


def delete_dead_temporary_files(folder: Path) -> None:
    """Delete what processes of this machine were writing that have ended."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*-{socket.gethostname()}-*"):
        pid = leftover.name.split("-")[-2]
        if pid.isdecimal() and not is_alive(int(pid)):
            leftover.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _process(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is published on leaving the block, and left out if the block raises."""
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_synced(path: Path, content: bytes) -> None:
    """Write a file that outlives a power cut, in place."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a synced file, and make the rename outlive a power cut."""
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
