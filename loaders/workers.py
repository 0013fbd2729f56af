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
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

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
        try:
            prepared = _Prepared(item)
        except (OSError, RuntimeError) as error:
            raise _not_shared("a loader worker cannot hand over a batch", error) from error
        yield cast(Item, prepared)


def shared_zeros(count: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Zeros `(count,)` that all workers of this process see. Raises ConfigError where there is no room for them."""
    try:
        return torch.zeros(count, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call, no-any-return]
    except (OSError, RuntimeError) as error:
        raise _not_shared("the place in an epoch cannot be shared with loader workers", error) from error


class CountedLoader(DataLoader[Item]):
    """A DataLoader of ready batches, none of which is lost without an error.

    Args:
        dataset: Makes the batches.
        num_workers: Worker processes.
        batch_bytes: Bytes of a batch.
        ranks_here: Ranks on this machine, which share its memory.
        options: Of the DataLoader.
    """

    def __init__(
        self,
        dataset: IterableDataset[Item],
        *,
        num_workers: int,
        batch_bytes: int,
        ranks_here: int = 1,
        **options: Any,
    ) -> None:
        if num_workers:
            options.setdefault("worker_init_fn", ignore_termination)
        super().__init__(dataset, batch_size=None, num_workers=num_workers, **options)
        self.batch_bytes = batch_bytes
        self._ranks_here = ranks_here
        self._has_begun = False  # all ranks begin together; later the free memory is without what the others hold

    def all_batches(self, expected: int | None) -> Iterator[Item]:
        """The batches of an iteration, which has to give so many; None where that is not known.

        Raises:
            ConfigError: There is no room for them in shared memory.
            TrainingError: A worker was killed, or batches did not arrive.
        """
        if not self._has_begun:
            self._refuse_small_memory()
        self._has_begun, found = True, 0
        for batch in start_workers(super().__iter__):
            found += 1
            yield batch
        if expected is not None and found < expected:
            raise TrainingError(
                f"the loader gave {found} of the {expected} batches that were left of its epoch: its workers "
                f"({self.num_workers}) lost the others, and what they printed is above. {RESUME}, with fewer "
                f"{WORKERS_KEY}; 0 loads in the process that uses them"
            )

    def _refuse_small_memory(self) -> None:
        """Raise ConfigError where the batches that wait at a time have no room in shared memory."""
        free = _free_memory()
        needed = self._ranks_here * (self.num_workers * (self.prefetch_factor or 0) + 1) * self.batch_bytes  # 1 in use
        if self.num_workers and free is not None and free < needed:
            raise ConfigError(
                f"{SHARED_MEMORY}: {readable_bytes(free)} are free, and {counted(self.num_workers, 'loader worker')} "
                f"of each rank need {readable_bytes(needed)} there in all ({counted(self._ranks_here, 'rank')}) for "
                f"batches of {readable_bytes(self.batch_bytes)}. {ROOM}, or a smaller datamodule.data_config.batch_size"
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
    iterator = make()
    _workers.update(child for child in multiprocessing.active_children() if child not in before)
    _note_deaths()
    with _explained():
        for item in iterator:
            yield item
            if _death is not None:
                raise RuntimeError(_death)


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
