"""Files that lists name are opened here: such a path may lead to a device, a FIFO or a folder, and what is read of one
never ends, or never begins."""

import errno
import os
import stat
from pathlib import Path
from typing import IO


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading, without waiting for anybody.

    Raises:
        OSError: It is missing, may not be read, or is no regular file; `strerror` says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a folder, a FIFO or a device; expected a regular file", str(path))
    return open(descriptor, "rb")


def read_regular(path: Path, most_bytes: int) -> tuple[bytes, int]:
    """Read a file whole: its content, and its modification time in nanoseconds.

    Raises:
        OSError: See `open_regular`; or it is larger than `most_bytes`, or changes while it is read.
    """
    with open_regular(path) as stream:
        status = os.fstat(stream.fileno())
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes; expected at most {most_bytes:,}", str(path))
        content = stream.read(status.st_size + 1)
    if len(content) != status.st_size:
        raise OSError(errno.EIO, "it changed while it was read; run again when nobody writes it", str(path))
    return content, status.st_mtime_ns
