"""SIGTERM and SIGUSR1, which schedulers send before they take a machine away, and SIGINT, which Ctrl-C sends."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytorch_lightning as pl

from iianet.interruption import INTERRUPTED, TERMINATED, terminable
from iianet.launch import is_first_rank
from iianet.terminal import complain
from iianet.wording import duration

FIRST_SECONDS = 10.0
"""Time that is waited before a word is said of it."""
LINE_SECONDS = 60.0
"""Time from one line to the next."""


class RunStopped(Exception):
    """A run was stopped by a signal; its checkpoint is written.

    Attributes:
        number: Number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Termination:
    """Notes that a signal was received. The run itself ends where its state can be saved."""

    def __init__(self) -> None:
        self._received = 0
        self._speaks = is_first_rank()

    def listen(self) -> None:
        """Handle SIGTERM instead of Lightning, which deadlocks with two ranks; it restores the handler before it.

        On SIGINT Lightning would exit without a checkpoint; a second one still does. SIGUSR1, by which Slurm warns
        before a time limit, is treated as SIGTERM.
        """
        if _is_main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                signal.signal(number, self._note)

    @property
    def is_asked(self) -> bool:
        """Whether this rank received a signal."""
        return bool(self._received)

    @property
    def number(self) -> int:
        """Number of the received signal; SIGTERM for SIGUSR1, or if another rank received it."""
        return signal.SIGINT if self._received == signal.SIGINT else signal.SIGTERM

    @property
    def name(self) -> str:
        """Name of the received signal; SIGTERM if another rank received it."""
        return signal.Signals(self._received or signal.SIGTERM).name

    def _note(self, number: int, _: Any) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._tell("interrupted: finishing and saving this step first; interrupt again to stop at once")
        else:
            self._tell(f"{signal.Signals(number).name} received: finishing and saving this step first")

    def _tell(self, text: str) -> None:
        """Say something while anything else may be half said: no log and no stream, which would refuse or wait."""
        if self._speaks:
            with suppress(OSError):  # whoever read it is gone; raised here it would end the run before it is saved
                os.write(2, f"INFO: {text}\n".encode())


def any_rank(trainer: pl.Trainer, condition: bool) -> bool:
    """Whether a condition holds on any rank. All ranks ask at once: one that stopped alone would leave the others
    waiting."""
    return trainer.strategy.reduce_boolean_decision(condition, all=False)


@contextmanager
def own_signals() -> Iterator[None]:
    """Restore the handlers of signals that `Termination` listens for, and end by each of them until it does.

    Where SIGUSR1 has a handler, Lightning does not put its own there, which under Slurm saves within the handler.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        with terminable(signal.SIGUSR1):
            yield
    finally:
        if _is_main_thread():  # signals reach no other
            signal.signal(signal.SIGINT, before or signal.default_int_handler)


@contextmanager
def waiting(what: str, tell: Callable[[str], None], end: Callable[[int], None]) -> Iterator[None]:
    """Say what the block waits for, and let signals end the process at once.

    A library that waits lets no handler of Python run. The number of a signal comes through a pipe instead, to a
    thread; there is nothing to save yet.

    Args:
        what: What is waited for, in words.
        tell: Says so, from time to time.
        end: Called with the number of the signal before the process ends, to end those that it started.
    """
    if not _is_main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    watch = threading.Thread(target=_watch, args=(reader, what, tell, end), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, bytes(1))
        watch.join()
        os.close(reader)
        os.close(writer)


def _watch(reader: int, what: str, tell: Callable[[str], None], end: Callable[[int], None]) -> None:
    start, patience = time.monotonic(), FIRST_SECONDS
    while True:
        if not select.select([reader], [], [], patience)[0]:
            tell(f"{what}, for {duration(time.monotonic() - start)} now; Ctrl-C or SIGTERM ends it")
            patience = LINE_SECONDS
            continue
        numbers = os.read(reader, 100)
        if asked := [number for number in numbers if number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]:
            end(asked[0])
            interrupted = asked[0] == signal.SIGINT
            complain("interrupted" if interrupted else "terminated")
            os._exit(INTERRUPTED if interrupted else TERMINATED)
        if 0 in numbers:
            return


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
