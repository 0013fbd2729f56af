"""What commands write: results on stdout, all else on stderr, and nothing that a terminal would obey.

Every text passes `printable` here. A reader who has seen enough (`| head`) ends no command, and a terminal that knows
ASCII alone shows other letters as escapes.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

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
    _write(f"{printable(text)}\n")


def complain(text: str) -> None:
    """Write what is no result to stderr, with a line end; to nobody where it cannot be written."""
    print(printable(text), file=sys.stderr, flush=True)


class PrintableFormatter(logging.Formatter):
    """Formats records for people: of a terminal, and of a log file that is shown on one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format as usual, then escape."""
        return printable(super().format(record))


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
    stderr, sys.stderr = sys.stderr, cast(TextIO, _Lasting(sys.stderr))
    try:
        yield
    finally:
        sys.stderr = stderr
        with suppress(OutputError):
            _write("")  # else Python tries it at its exit, and changes the exit code
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


def _write(text: str) -> None:
    """Write to stdout and flush, to nobody where it is closed or its reader is gone."""
    if sys.stdout.closed:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _lead_to_nobody(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OutputError(
                f"stdout: cannot be written ({error.strerror}); make room where it is written to, or write it to "
                "another place"
            ) from error


def _lead_to_nobody(stream: TextIO) -> None:
    """Let what is in a stream's buffer, and all that comes, be lost, so that no later write fails."""
    with open(os.devnull, "wb") as nobody:
        os.dup2(nobody.fileno(), stream.fileno())


class _Lasting:
    """A stream for logs and progress bars that leads to nobody once it cannot be written.

    An error of a bar would be taken for one of the store whose files are written at that time.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        try:
            return self._stream.write(text)
        except OSError:
            _lead_to_nobody(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        try:
            self._stream.flush()
        except OSError:
            _lead_to_nobody(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _TerminalHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            complain(self.format(record))
