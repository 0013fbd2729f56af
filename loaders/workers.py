"""Worker processes of loaders: they outlive SIGTERM and Ctrl-C, but not the process that started them."""

import atexit
import multiprocessing
import multiprocessing.util  # before our own exit is registered, so that ours comes first
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_parent: int | None = None
_started: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


def leave_termination_to_the_trainer(_: int) -> None:
    """Ignore SIGTERM and SIGINT in a worker: schedulers and terminals send them to every process, and the last step
    still needs its batch."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def iterate(make: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """Make an iterator that may start workers, and end those when this process does, whatever it ends by."""
    global _parent
    _parent = os.getpid()
    before = set(multiprocessing.active_children())
    iterator = make()
    _started.update(child for child in multiprocessing.active_children() if child not in before)
    return iterator


@atexit.register
def _end() -> None:
    """multiprocessing would send its children SIGTERM, and wait for them for good."""
    if os.getpid() == _parent:  # a fork of it has inherited the list, and not the children
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise, of the first one that we kill
        for process in list(_started):
            if process.is_alive():
                process.kill()
