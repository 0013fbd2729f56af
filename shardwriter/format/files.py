"""Files that appear whole or not at all: written beside their place, synced, renamed."""

import errno
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shardwriter.format.names import TEMPORARY_PREFIX

TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}(.+)-(\d+)-[0-9a-f]{{16}}", re.DOTALL)


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process or thread uses, and that nobody can foresee and make a link of."""
    own = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{own}")


def delete_temporary_files(folder: Path, is_dead: Callable[[int | None], bool] = lambda _: True) -> None:
    """Delete what processes were writing that have ended; files of other programs stay, whatever they are named.

    Args:
        folder: Where it was written.
        is_dead: Whether a process has ended, by its number on this machine; None is one of another machine.
    """
    entries = list(os.scandir(folder)) if folder.is_dir() else []
    for entry in entries:
        match = TEMPORARY_NAME.fullmatch(entry.name)
        if match is not None and not entry.is_dir(follow_symlinks=False):
            is_here = match[1].endswith(f"-{socket.gethostname()}")
            if is_dead(int(match[2]) if is_here else None):
                Path(entry.path).unlink(missing_ok=True)


def delete_dead_temporary_files(folder: Path) -> None:
    """Delete what processes of this machine were writing that have ended."""
    delete_temporary_files(folder, lambda pid: pid is not None and not is_alive(pid))


def make_own_folder(path: Path) -> None:
    """Make a folder, if it is not there. Raises OSError where it is a link: what it leads to is not ours to change."""
    path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise OSError(errno.ENOTDIR, "it is a link, expected a folder: delete it", str(path))


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has such a number
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is published on leaving the block, and left out if the block raises."""
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as stream:
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
