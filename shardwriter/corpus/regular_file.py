"""Files that lists name are opened here: such a path may lead to a device, a FIFO or a folder, and what is read of one
never ends, or never begins."""

import errno
import os
import stat
from pathlib import Path
from typing import IO, NamedTuple

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class FileContent(NamedTuple):
    """All bytes of a file, and its modification time, nanoseconds."""

    content: bytes
    mtime_ns: int


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading, without waiting for anybody.

    Raises:
        OSError: It is missing, may not be read, or is no regular file; `strerror` says which.
        ValueError: The path holds a NUL.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, f"{_KINDS.get(kind, 'no file')}; expected a regular file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most_bytes: int) -> FileContent:
    """Read a file whole.

    Raises:
        OSError: See `open_regular`; or it is larger than `most_bytes`, or changes while it is read.
        ValueError: The path holds a NUL.
    """
    with open_regular(path) as stream:
        status = os.fstat(stream.fileno())
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes; expected at most {most_bytes:,}", str(path))
        content = stream.read(status.st_size + 1)
    if len(content) != status.st_size:
        raise OSError(errno.EIO, "it changed while it was read; run again when nobody writes it", str(path))
    return FileContent(content, status.st_mtime_ns)
