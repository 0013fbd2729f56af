"""Loader workers: how a batch leaves one, and how it ends. None is lost without an error.

Batches lie in shared memory, and a socket below TMPDIR hands them over. torch prepares that in a thread which drops
what it cannot send, prints a traceback, and lets the loop wait or the epoch end early. So it is prepared here before.
"""

import atexit
import multiprocessing
import multiprocessing.util  # before our own exit is registered, so that ours comes first
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import get_worker_info

from iianet.errors import ConfigError, TrainingError
from iianet.wording import counted, readable_bytes

Item = TypeVar("Item")

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps what processes share."""
WORKERS_KEY = "datamodule.data_config.num_workers"
ROOM = f"Make it larger (docker run --shm-size=8g, or --ipc=host), or use fewer {WORKERS_KEY} (0 needs none)"
RESUME = "Continue with --resume last, or from the state_dict of the loader"
SOCKET_BYTES = 107
"""Longest path of a socket."""

_parent: int | None = None
_death: str | None = None
_workers: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


class _Prepared(Generic[Item]):
    """Turns into the item where it arrives."""

    def __init__(self, item: Item) -> None:
        self.content = bytes(ForkingPickler.dumps(item))

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (self.content,)


def sendable(items: Iterator[Item]) -> Iterator[Item]:
    """In a worker, the items ready to be handed over; elsewhere the items themselves.

    Raises:
        ConfigError: There is no room in shared memory, or TMPDIR is no place for sockets.
    """
    if get_worker_info() is None:
        yield from items
        return
    for item in items:
        with sharing("a loader worker cannot hand over a batch"):
            prepared = _Prepared(item)
        yield cast(Item, prepared)


@contextmanager
def sharing(what: str = "the place in an epoch cannot be shared with loader workers") -> Iterator[None]:
    """Raise ConfigError where there is no room in shared memory, or TMPDIR is no place for sockets."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise _not_shared(what, error) from error


def shared_zeros(count: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Zeros `(count,)` that all workers of this process see. Raises ConfigError where there is no room for them."""
    with sharing():
        return torch.zeros(count, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call, no-any-return]


def refuse_small_memory(ranks: int, workers: int, batches: int, batch_bytes: int) -> None:
    """Raise ConfigError where the batches that wait at a time have no room in shared memory.

    Args:
        ranks: Ranks on this machine, which share its memory.
        workers: Loader workers of each.
        batches: Batches that wait, and that are in use, of each.
        batch_bytes: Bytes of a batch.
    """
    free, needed = _free_memory(), ranks * batches * batch_bytes
    if workers and free is not None and free < needed:
        raise ConfigError(
            f"{SHARED_MEMORY}: {readable_bytes(free)} are free, and {counted(workers, 'loader worker')} of each rank "
            f"need {readable_bytes(needed)} there in all ({counted(ranks, 'rank')}) for batches of "
            f"{readable_bytes(batch_bytes)}. {ROOM}, or a smaller datamodule.data_config.batch_size"
        )


def _not_shared(what: str, error: Exception) -> ConfigError:
    if "AF_UNIX" in str(error):
        folder = os.path.dirname(multiprocessing.util.get_temp_dir())
        return ConfigError(
            f"TMPDIR: {what}, since the path of a socket has at most {SOCKET_BYTES} bytes and {folder} has "
            f"{len(os.fsencode(folder))} already. Set TMPDIR to a folder with a short path, or {WORKERS_KEY}=0"
        )
    return ConfigError(f"{SHARED_MEMORY}: {what} ({error}), {readable_bytes(_free_memory() or 0)} are free. {ROOM}")


def _free_memory() -> int | None:
    """Bytes that are free in shared memory; None where the system has another kind."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def ignore_termination(_: int) -> None:
    """Ignore SIGTERM and SIGINT in a worker: schedulers and terminals send them to every process, and the last step
    still needs its batch."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def start_workers(make: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """Iterate over what may start workers, and end them when this process ends, by an error too.

    Raises:
        TrainingError: A worker was killed.
    """
    global _parent, _death
    _parent, _death = os.getpid(), None
    before = set(multiprocessing.active_children())
    with _explained():
        iterator = make()  # whose persistent workers may have died since the last one
    own = [child for child in multiprocessing.active_children() if child not in before]
    _workers.update(own)
    _note_deaths()
    try:
        with _explained():
            for item in iterator:
                yield item
                if _death is not None:
                    raise RuntimeError(_death)
    except GeneratorExit:  # left early
        raise
    except BaseException:  # a signal's too
        _workers.difference_update(own)
        for worker in own:  # torch would wait 5 s for each
            worker.kill()
        raise


def _note_deaths() -> None:
    """Let torch's handler of ended workers, which raises wherever this process is, leave that to who reads batches.

    Raised within logging, say, it would leave a lock locked, and the next thread that logs would wait for ever. Who
    waits for a batch looks after the workers every few seconds.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    in_main = threading.current_thread() is threading.main_thread()
    if not callable(handler) or getattr(handler, "notes", False) or not in_main:
        return

    def note(*arguments: Any) -> None:
        global _death
        try:
            handler(*arguments)
        except RuntimeError as error:
            if any(f"(pid {worker.pid})" in str(error) for worker in _workers):
                _death = _death or str(error)

    note.notes = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGCHLD, note)


@contextmanager
def _explained() -> Iterator[None]:
    """Say what torch's error says of a worker that ended; any other error passes as it is."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        said = _death or str(error)
        fact = "ended while it handed over a batch"
        if said.startswith("DataLoader worker"):
            fact = said.removeprefix("DataLoader worker").partition(". ")[0].strip()
        elif isinstance(error, RuntimeError) or not _workers:
            raise
        raise TrainingError(
            f"a loader worker {fact}. Killed: most often memory ran out (see dmesg, or the limit of the container or "
            f"job); use fewer {WORKERS_KEY} or a smaller batch_size. Bus error: {SHARED_MEMORY} is full, or a file was "
            f"rewritten or cut while it was read. {RESUME}"
        ) from error


@atexit.register
def _end_workers() -> None:
    """multiprocessing would send its children SIGTERM, and wait for ever."""
    if os.getpid() == _parent:  # a fork of it has inherited the list, and not the children
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise for the first one that we kill
        for process in list(_workers):
            if process.is_alive():
                process.kill()
