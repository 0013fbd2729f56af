"""An operation by processes that share a folder: the ranks of torchrun, Slurm or a script, or those of a training run.

The first rank to come plans, and publishes what is to be written. Each takes shards until none is left, so a fast one
takes more and nobody waits for another. The last one to leave writes what dead ranks had taken, commits and sums up.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any, Protocol

from iianet.errors import StoreError
from shardwriter.execute.executor import Executor
from shardwriter.execute.operation import Operation, WriteTasks, run_tasks
from shardwriter.execute.rank import Rank
from shardwriter.execute.rank_lock import JobState, RankLock, SharedTasks, delete_task_locks, rank_lock
from shardwriter.format.plan import ShardTask
from shardwriter.storage.folder import Folder
from shardwriter.storage.lock import delete_leftovers
from shardwriter.store.snapshot import Snapshot
from shardwriter.store.transaction import Transaction, open_transaction

logger = logging.getLogger(__name__)


def run_as_rank(operation: Operation, folder: Folder, executor: Executor, rank: Rank) -> bool:
    """Take part in an operation with the other ranks of a job.

    Returns:
        Whether this rank was the last one: then the operation's report is that of all.

    Raises:
        FeatureStoreError: This rank could not go on. What it had taken is left to the last one, or the next run.
    """
    asked = operation.asked()  # now: what is planned may change the operation
    with rank_lock(folder.path, rank, asked) as lock:
        with lock.turn():
            is_alone = lock.is_alone()
            if is_alone and lock.is_late():
                _note(lock, rank, operation)
                logger.info("%s: the other ranks were done when this one came", folder.name)
                return False
            if is_alone:
                _begin(operation, folder, rank, asked, lock)
            state = lock.read() if is_alone else lock.join()
        if not is_alone:
            operation.join(state.shared)
        tasks = _tasks(folder, state)
        _run_shared(operation, executor, SharedTasks(folder, tasks, (rank.number, rank.world_size)), rank.number == 0)
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


def _note(lock: RankLock, rank: Rank, operation: Operation) -> None:
    """Write down what this rank did."""
    state = lock.read()
    state.counts[str(rank.number)] = dict(operation.counts())
    lock.write(state)


def _begin(operation: Operation, folder: Folder, rank: Rank, asked: str, lock: RankLock) -> None:
    """Plan, and publish what is to be written."""
    delete_leftovers(folder.path)
    delete_task_locks(folder)
    transaction = Transaction(folder, operation.keep_replaced_days)
    transaction.open()
    tasks = operation.begin(transaction)
    if tasks:
        transaction.prepare(tasks)
    headers = [transaction.pending, *transaction.active]
    lock.begin(
        JobState(
            job=rank.job,
            asked=asked,
            shared=dict(operation.to_share()),
            plans=[header.name for header in headers if header is not None],
            tasks=[task.shard for task in tasks],
        )
    )


def _tasks(folder: Folder, state: JobState) -> list[ShardTask]:
    """What the job writes."""
    if not state.tasks:
        return []
    snapshot = Snapshot.open(folder, hold=False)
    headers = [snapshot.headers[name] for name in state.plans]
    planned = {task.shard: task for header in headers for task in snapshot.plan(header).tasks()}
    return [planned[shard] for shard in state.tasks]


def _run_shared(operation: Operation, executor: Executor, tasks: SharedTasks, shown: bool) -> None:
    with operation.watch(None, shown=shown) as progress, closing(tasks):
        executor.run(operation.job(), tasks, progress)


def _end(operation: Operation, folder: Folder, executor: Executor, state: JobState) -> None:
    """Write what ranks that died had taken, commit, and sum up what all did."""
    delete_leftovers(folder.path)
    operation.add_counts(list(state.counts.values()))
    transaction = Transaction(folder, operation.keep_replaced_days)
    transaction.open()
    write = _writer(operation, executor, transaction)
    headers = [transaction.opened.headers[name] for name in state.plans]
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


def _writer(operation: Operation, executor: Executor, transaction: Transaction) -> WriteTasks:
    return lambda tasks: transaction.run(tasks, lambda left: run_tasks(operation, executor, left))


class Together(Protocol):
    """Processes that take the same steps: the ranks of a training run."""

    @property
    def number(self) -> int:
        """Number of this one."""

    @property
    def count(self) -> int:
        """How many there are."""

    def all(self, value: bool) -> bool:
        """Whether all gave True; waits for all."""


def run_together(operation: Operation, folder: Folder, executor: Executor, together: Together) -> None:
    """Run an operation by processes that wait for each other: the first one plans and commits, all write shards.

    Raises:
        FeatureStoreError: On every rank, where one could not go on.
    """
    first = together.number == 0
    with ExitStack() as held:
        transactions: list[Transaction] = []
        tasks: list[ShardTask] = []

        def begin() -> None:
            if first:
                transactions.append(held.enter_context(open_transaction(folder, operation.keep_replaced_days)))
                delete_task_locks(folder)
                tasks.extend(operation.begin(transactions[0]))
                if tasks:
                    transactions[0].prepare(tasks)

        def write() -> None:
            if not first:
                tasks.extend(_unfinished(folder))
            shared = SharedTasks(folder, tasks, (together.number, together.count))
            _run_shared(operation, executor, shared, first)

        def end() -> None:
            if first:
                transactions[0].refresh()
                operation.end(transactions[0], _writer(operation, executor, transactions[0]))
                delete_task_locks(folder)

        for step in (begin, write, end):
            _step(together, step)


def _unfinished(folder: Folder) -> list[ShardTask]:
    """What the first rank has planned."""
    transaction = Transaction(folder, None)
    transaction.read(Snapshot.open(folder, hold=False))
    return transaction.unfinished(transaction.active)


def _step(together: Together, step: Callable[[], Any]) -> None:
    """Take a step on every rank. One that fails must not leave the others waiting for it."""
    failure: BaseException | None = None
    try:
        step()
    except BaseException as error:
        failure = error
    if not together.all(failure is None):
        raise failure or StoreError("another rank could not build what is missing; its message says why")
