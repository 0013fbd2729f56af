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
def terminable(*others: signal.Signals) -> Iterator[None]:
    """Raise Terminated inside the block on SIGTERM, so that files are closed and temporary files deleted.

    In a thread, which signals never reach, the block runs as it is.

    Args:
        others: Signals that are treated as SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _raise) for number in (signal.SIGTERM, *others)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not of Python


def _raise(*_: Any) -> None:
    raise Terminated
