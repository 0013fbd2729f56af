"""Run the tasks of a build in several processes of this machine, one for each device."""

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from iianet.errors import FeatureStoreError, StoreError
from iianet.interruption import end_with_parent
from shardwriter.encode.write_shards import Event, Progress, Published, write_shards
from shardwriter.execute.executor import Job
from shardwriter.format.files import delete_temporary_files
from shardwriter.format.plan import ShardTask

logger = logging.getLogger(__name__)

_CONTEXT = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
CHECK_SECONDS = 10.0
"""How often the parent looks whether it still holds the store."""
SILENT_CHECKS = 60
"""After so many without news of any process, the parent says so."""
CLAIM, WAIT = "claim", "wait"
"""What a worker sends beside the events of its tasks: it would take one more task; it has none and waits for one. And
the error for which it cannot continue."""


@dataclass(frozen=True)
class Processes:
    """Runs tasks in a process for each device; a device that is named twice has two.

    Each takes a task when it comes to it, so that a fast device takes more. A process that the system ends leaves its
    tasks to the others.
    """

    devices: Sequence[torch.device]

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        """See `Executor`."""
        crew = _Crew(job, iter(tasks), progress)
        try:
            crew.hire(self.devices)
            while crew.workers:
                crew.hear()
        finally:
            crew.dismiss()


@dataclass(eq=False)
class _Worker:
    """A process, the tasks that it has claimed but not published, and what it has reported of the first of them."""

    device: torch.device
    process: SpawnProcess
    connection: "Connection[Any, Any]"
    claimed: dict[str, ShardTask] = field(default_factory=dict)
    reported: set[tuple[str, str]] = field(default_factory=set)
    waits: bool = False


class _Crew:
    """The processes of a run."""

    def __init__(self, job: Job, more: Iterator[ShardTask], progress: Progress) -> None:
        self.job = job
        self.left: deque[ShardTask] = deque()
        self.more = more
        self.progress = progress
        self.workers: list[_Worker] = []
        self.reported: set[tuple[str, str]] = set()
        self.silent_checks = 0

    def hire(self, devices: Sequence[torch.device]) -> None:
        """Start a process for each device, as long as there are tasks."""
        num_threads = max(1, torch.get_num_threads() // len(devices))
        for device in devices:
            task = next(self.more, None)
            if task is None:
                return
            self.left.append(task)
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=work, args=(self.job, device, num_threads, theirs), daemon=True)
            with _signals_for_the_parent():
                process.start()
                self.workers.append(_Worker(device, process, ours))  # in here: a signal that waits comes right behind
            theirs.close()  # so that the end of the process is the end of the connection

    def hear(self) -> None:
        """Wait for what a worker has to say, and answer."""
        ready = wait([worker.connection for worker in self.workers], timeout=CHECK_SECONDS)
        self.job.storage.check_lock()  # which the processes, who publish, do not hold
        self.silent_checks = 0 if ready else self.silent_checks + 1
        if self.silent_checks == SILENT_CHECKS:
            logger.warning(
                "no process has encoded anything for %.0f minutes; if a device hangs, stop the build and run it again, "
                "which resumes",
                SILENT_CHECKS * CHECK_SECONDS / 60,
            )
        for worker in [worker for worker in self.workers if worker.connection in ready]:
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                self._bury(worker)
            else:
                self._take(worker, message)
        waiting = [worker for worker in self.workers if worker.waits]
        for worker in waiting:
            task = self._next()
            if task is not None or not any(worker.claimed for worker in self.workers):
                worker.waits = False
                self._give(worker, task)

    def dismiss(self) -> None:
        """End all processes, and delete what they were writing."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            self._clean(worker)

    def _take(self, worker: _Worker, message: Event | str | FeatureStoreError) -> None:
        if isinstance(message, FeatureStoreError):
            raise message
        if message == CLAIM:
            self._give(worker, self._next())
        elif isinstance(message, str):
            worker.waits = True
        elif isinstance(message, Published):
            del worker.claimed[message.shard]
            worker.reported.clear()
            self.progress(message)
        else:
            utterance = (message.split, message.key)
            worker.reported.add(utterance)
            if utterance in self.reported:  # by a process that ended before its shard was complete
                self.reported.discard(utterance)
            else:
                self.progress(message)

    def _next(self) -> ShardTask | None:
        return self.left.popleft() if self.left else next(self.more, None)

    def _give(self, worker: _Worker, task: ShardTask | None) -> None:
        if task is not None:
            worker.claimed[task.shard] = task
            task = task.alone()
        try:
            worker.connection.send(task)
        except BrokenPipeError:
            return  # it has ended, and is heard of next

    def _bury(self, worker: _Worker) -> None:
        """Take note of a process that has ended. Raises StoreError where it should not have."""
        self.workers.remove(worker)
        worker.process.join()
        self._clean(worker)
        code = worker.process.exitcode
        if code == 0:
            return
        if not worker.claimed and not self.workers and self._next() is None:
            return  # it had done all there was
        ended = f"the process on {worker.device} was ended by signal {-(code or 0)}"
        if code is None or code > 0:
            raise StoreError(
                f"{self.job.storage.name}: the process on {worker.device} failed with exit code {code}; its message is "
                "above. Every published shard is whole: fix it (out of memory: a smaller --batch_size or "
                "--num_processes) and run the command again to resume."
            )
        if not self.workers:
            raise StoreError(
                f"{self.job.storage.name}: {ended}, and no other is left. Signal 9 often means that memory ran out: "
                "give fewer --num_processes or a smaller --batch_size. Every published shard is whole; run the command "
                "again to resume."
            )
        logger.warning("%s; the other %d take over its %d shards", ended, len(self.workers), len(worker.claimed))
        self.left.extend(worker.claimed.values())
        self.reported |= worker.reported

    def _clean(self, worker: _Worker) -> None:
        assert worker.process.pid is not None
        delete_temporary_files(self.job.storage.staging, lambda pid: pid == worker.process.pid)


@contextmanager
def _signals_for_the_parent() -> Iterator[None]:
    """Processes that are started here never see what stops a build, as Ctrl-C does that a terminal sends to all of its
    processes: their parent does, and ends them. Blocked signals are inherited; ours wait until they are let in again.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(job: Job, device: torch.device, num_threads: int, parent: "Connection[Any, Any]") -> None:
    """Run tasks until the parent has no more."""
    end_with_parent()  # it would write to a store that it does not hold
    torch.set_num_threads(num_threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        samples = job.source.open(device)
        while (first := _ask(parent, WAIT)) is not None:
            tasks = chain([first], _claimed(parent))
            write_shards(job.storage, tasks, samples, parent.send)
    except FeatureStoreError as error:
        with suppress(OSError):  # the parent was killed, and we are about to end
            parent.send(error)


def _ask(parent: "Connection[Any, Any]", how: str) -> ShardTask | None:
    parent.send(how)
    task: ShardTask | None = parent.recv()
    return task


def _claimed(parent: "Connection[Any, Any]") -> Iterator[ShardTask]:
    """Tasks while there are any, each claimed when reading comes to it."""
    while (task := _ask(parent, CLAIM)) is not None:
        yield task
