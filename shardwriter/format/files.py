"""Files that appear whole or not at all: written beside their place, synced, renamed."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

from shardwriter.format.names import TEMPORARY_PREFIX

_counter = count()


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process or thread uses."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{_process(os.getpid())}-{next(_counter)}")


def drop_temporary_files(folder: Path, pid: int) -> None:
    """Delete what a process of this machine was writing when it ended."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*-{_process(pid)}-*"):
        leftover.unlink(missing_ok=True)


def drop_dead_temporary_files(folder: Path) -> None:
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
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Publish JSON, indented for people."""
    with atomic_file(path) as stream:
        stream.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
