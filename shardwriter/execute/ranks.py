"""An operation by processes that share a folder: the ranks of torchrun, Slurm or a script, or those of a training run.

The first rank to come plans, and publishes what is to be written. Each takes shards until none is left, so a fast one
takes more and nobody waits for another. The last one to leave writes what dead ranks had taken, commits and sums up.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol

from iianet.errors import StoreError
from iianet.launch import Launch
from shardwriter.execute.executor import Executor
from shardwriter.execute.operation import Operation, run_tasks
from shardwriter.execute.rank_lock import JobState, RankLock, SharedTasks, delete_task_locks, rank_lock
from shardwriter.format.files import delete_temporary_files
from shardwriter.format.plan import ShardTask
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot
from shardwriter.store.transaction import Transaction

logger = logging.getLogger(__name__)


def run_as_rank(operation: Operation, folder: Folder, executor: Executor, rank: Launch) -> bool:
    """Take part in an operation with the other ranks of a job.

    Returns:
        Whether this rank was the last one: then the operation's report is that of all.

    Raises:
        FeatureStoreError: This rank could not continue. What it had taken is left to the last one, or the next run.
    """
    logger.info("%s: this is %s", folder.name, rank.words)
    asked = operation.asked()  # now: what is planned may change the operation
    with rank_lock(folder.path, rank, asked) as lock:
        with lock.turn():
            is_alone = lock.is_alone()
            if is_alone and lock.is_late():
                _note(lock, rank, operation)
                logger.info("%s: the other ranks were done when this one came", folder.name)
                return False
            if is_alone:
                delete_temporary_files(folder.path)
                lock.begin(_plan(operation, folder, rank.job, asked))
            state = lock.read() if is_alone else lock.join()
        if not is_alone:
            operation.join(state.shared)
        _run_shared(operation, folder, executor, state, (rank.number, rank.world_size))
        with lock.turn():
            _note(lock, rank, operation)
            if not lock.is_alone():
                lock.leave()
                return False
            state = lock.read()
            _end(operation, folder, executor, state)  # within the turn: a late rank waits, and finds nothing to do
            state.done = True
            lock.write(state)
        return True


def _note(lock: RankLock, rank: Launch, operation: Operation) -> None:
    """Write down what this rank did."""
    state = lock.read()
    state.counts[str(rank.number)] = dict(operation.counts())
    lock.write(state)


def _plan(operation: Operation, folder: Folder, job: str, asked: str) -> JobState:
    """Plan, and publish what is to be written."""
    delete_task_locks(folder)
    transaction = Transaction(folder, operation.keep_replaced_days)
    transaction.open()
    tasks = operation.begin(transaction)
    if tasks:
        transaction.prepare(tasks)
    headers = [transaction.pending, *transaction.active]
    return JobState(
        job=job,
        asked=asked,
        shared=dict(operation.to_share()),
        plans=[header.name for header in headers if header is not None],
        tasks=[task.shard for task in tasks],
    )


def _tasks(folder: Folder, state: JobState) -> list[ShardTask]:
    """What the job writes."""
    if not state.tasks:
        return []
    snapshot = Snapshot.open(folder, hold=False)
    headers = [snapshot.header(name) for name in state.plans]
    planned = {task.shard: task for header in headers for task in snapshot.plan(header).tasks()}
    return [planned[shard] for shard in state.tasks]


def _run_shared(
    operation: Operation, folder: Folder, executor: Executor, state: JobState, part: tuple[int, int]
) -> None:
    """Write shards until none is left; `part` is the number of this process and how many there are."""
    tasks = SharedTasks(folder, _tasks(folder, state), part)
    with operation.watch(None, shown=part[0] == 0) as progress, closing(tasks):
        executor.run(operation.job(), tasks, progress)


def _end(operation: Operation, folder: Folder, executor: Executor, state: JobState) -> None:
    """Write what ranks that died had taken, commit, and sum up what all did."""
    delete_temporary_files(folder.path)
    operation.add_counts(list(state.counts.values()))
    transaction = Transaction(folder, operation.keep_replaced_days)
    transaction.open()

    def write(tasks: Sequence[ShardTask]) -> None:
        transaction.run(tasks, lambda left: run_tasks(operation, executor, left))

    headers = [transaction.opened.header(name) for name in state.plans]
    wanted = set(state.tasks)
    left = [task for task in transaction.unfinished(headers) if task.shard in wanted]
    if left:
        logger.warning(
            "%s: %d shards were taken by ranks that ended before they were written; this one writes them",
            folder.name,
            len(left),
        )
    write(left)
    operation.end(transaction, write)
    delete_task_locks(folder)


class Together(Protocol):
    """Processes that take the same steps: the ranks of a training run."""

    @property
    def number(self) -> int:
        """Number of this one."""

    def exchange(self, value: Any) -> Sequence[Any]:
        """What each of them gives, by its number; waits for all."""


def run_together(operation: Operation, folder: Folder, executor: Executor, together: Together) -> None:
    """Run an operation by processes that wait for each other: the first one plans and commits, all write shards.

    Afterwards the first one's report is that of all.

    Raises:
        FeatureStoreError: On every rank, where one could not continue.
    """
    is_first = together.number == 0
    with ExitStack() as held:

        def begin() -> JobState | None:
            if not is_first:
                return None
            held.enter_context(folder.write_lock())
            return _plan(operation, folder, "", "")

        state, *others = _step(together, begin)
        assert isinstance(state, JobState)

        def write() -> dict[str, Any]:
            if not is_first:
                operation.join(state.shared)
            _run_shared(operation, folder, executor, state, (together.number, 1 + len(others)))
            return dict(operation.counts())

        counts = _step(together, write)
        state.counts.update({str(number): each for number, each in enumerate(counts)})
        _step(together, lambda: _end(operation, folder, executor, state) if is_first else None)


def _step(together: Together, step: Callable[[], Any]) -> Sequence[Any]:
    """Take a step on every rank, and return what each gives. One that fails must not leave the others waiting."""
    value, failure = None, None
    try:
        value = step()
    except BaseException as error:
        failure = error
    try:
        given = together.exchange((value, failure is None))
    except Exception as error:  # a rank was killed
        raise (failure or error) from error
    if not all(is_done for _, is_done in given):
        raise failure or StoreError("another rank could not build what is missing; its message says why")
    return [each for each, _ in given]
