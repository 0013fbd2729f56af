"""Ctrl-C ends a command at any moment, also during its imports; and so does SIGTERM, which Slurm and clouds send
before they take a machine away."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing.connection import wait
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


def end_with_parent() -> None:
    """Let this started process end as soon as the one that started it has, however that ended.

    It would else wait for work for ever, or write to what nobody holds.
    """
    parent = parent_process()
    assert parent is not None, "this process was not started by multiprocessing"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def begin_helper() -> None:
    """Begin a process of a pool: Ctrl-C is its parent's, with which it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _raise(*_: Any) -> None:
    raise Terminated


def main_of(module: str) -> Callable[..., Any]:
    """Import a command's `main`, which takes seconds; Ctrl-C meanwhile ends the process as it would later.

    It ends there and then: libraries turn an exception in the middle of their imports into errors of their own.
    """
    before = signal.getsignal(signal.SIGINT)
    is_ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, _end)
    try:
        main: Callable[..., Any] = import_module(module).main
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, before)
    return main


def _end(*_: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
