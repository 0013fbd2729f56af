"""The one place that opens files whose names come from outside: such a name may lead to a FIFO, a device or a folder,
and what is read of one never begins, or never ends."""

import errno
import os
import stat
from pathlib import Path
from typing import IO


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file, and nothing else, without waiting for anybody.

    Args:
        path: Of the file; a link to one will do.
        flags: As those of `os.open`. With O_CREAT, where the file is changed in place, no link will do: what it leads
            to is not ours to change.

    Returns:
        Its descriptor.

    Raises:
        OSError: It is missing, may not be opened, or is no regular file; `strerror` says which.
    """
    if flags & os.O_CREAT:
        flags |= os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link, expected a regular file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a folder, a FIFO or a device; expected a regular file", str(path))
    return descriptor


def read_regular(path: Path) -> IO[bytes]:
    """The same, opened for reading."""
    return open(open_regular(path), "rb")


def content_of(path: Path, most_bytes: int) -> tuple[bytes, int]:
    """Read a file whole: its content, and its modification time in nanoseconds.

    Raises:
        OSError: As `open_regular`; or it is larger than `most_bytes`, or changes while it is read.
    """
    with read_regular(path) as stream:
        status = os.fstat(stream.fileno())
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes; expected at most {most_bytes:,}", str(path))
        content = stream.read(status.st_size + 1)
    if len(content) != status.st_size:
        raise OSError(errno.EIO, "it changed while it was read; run again when nobody writes it", str(path))
    return content, status.st_mtime_ns
