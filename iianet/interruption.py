"""SIGTERM, which Slurm and clouds send before they take a machine away, ends a command as Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
TERMINATED = 143
"""Exit codes: 128 and the signal's number, as a shell would say."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated inside the block on SIGTERM, so that files are closed and temporary files deleted.

    In a thread, which signals never reach, the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: a handler that is not of Python


def _raise(*_: Any) -> None:
    raise Terminated
