"""What commands write: results on stdout, all else on stderr, and nothing that a terminal would obey.

Every text passes `printable` here. A reader who has seen enough (`| head`) ends no command, and a terminal that knows
ASCII alone shows other letters as escapes.
"""

import io
import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tqdm import tqdm

from iianet.errors import OutputError
from iianet.wording import printable

CHATTY = ("botocore", "aiobotocore")
"""Loggers that say where they found credentials."""


def say(text: str) -> None:
    """Write a result to stdout, with a line end.

    Raises:
        OutputError: stdout cannot be written, as on a full disk.
    """
    _write(sys.stdout, f"{printable(text)}\n")


def complain(text: str) -> None:
    """Write what is no result to stderr, with a line end; to nobody where it cannot be written."""
    with suppress(OutputError):
        _write(sys.stderr, f"{printable(text)}\n")


class PrintableFormatter(logging.Formatter):
    """Formats records for people: of a terminal, and of a log file that is shown on one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format as usual, then escape."""
        return printable(super().format(record))


def is_deserted() -> bool:
    """Whether nobody reads what is written to stdout or stderr any more."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, select.POLLERR)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def terminal(level: int) -> Iterator[None]:
    """Let logging go to the terminal inside the block; afterwards all is as it was.

    Args:
        level: Lowest level that is shown.
    """
    _open_closed_streams()
    handler = _TerminalHandler(level)
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    root, chatty = logging.getLogger(), [logging.getLogger(name) for name in CHATTY]
    handlers, levels = list(root.handlers), [each.level for each in (root, *chatty)]
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    errors = [stream.errors for stream in streams]
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for each in chatty:
        each.setLevel(logging.WARNING)
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OutputError):
            _write(sys.stdout, "")  # else Python tries it at its exit, and changes the exit code
        for stream, before in zip(streams, errors, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=before)
        for each, before_level in zip((root, *chatty), levels, strict=True):
            each.setLevel(before_level)
        root.handlers[:] = handlers


def _open_closed_streams() -> None:
    """Let standard streams that were closed (`2>&-`) lead to nobody, for good.

    Else the next file that is opened, such as a shard, gets the number of one, and what a library writes there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _write(stream: TextIO, text: str) -> None:
    """Write and flush, to nobody where the stream is closed or its reader is gone."""
    if stream.closed:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nobody:
            os.dup2(nobody.fileno(), stream.fileno())  # what is buffered goes there, and all that comes
        if not isinstance(error, BrokenPipeError):
            name = "stdout" if stream is sys.stdout else "stderr"
            cure = "make room where it is written to, or write it to another place"
            raise OutputError(f"{name}: cannot be written ({error.strerror}); {cure}") from error


class _TerminalHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            complain(self.format(record))
