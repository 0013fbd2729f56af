"""What a build or a compaction is to those who run it: it plans, its tasks are run, it ends."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from shardwriter.encode.write_shards import Progress
from shardwriter.execute.executor import Executor, Job
from shardwriter.format.plan import ShardTask
from shardwriter.storage.storage import Storage
from shardwriter.store.transaction import Transaction, open_transaction

WriteTasks = Callable[[Sequence[ShardTask]], None]


class Operation(Protocol):
    """Changes a store by one plan, or by one after another.

    Attributes:
        keep_replaced_days: See the config's key of this name.
    """

    keep_replaced_days: float | None

    def begin(self, transaction: Transaction) -> Sequence[ShardTask]:
        """Publish a plan, if anything is to be done, and return the tasks to run."""

    def end(self, transaction: Transaction, write: WriteTasks) -> None:
        """Commit what the tasks have written; `write` runs further tasks in this process."""

    def job(self) -> Job:
        """What the processes that run tasks need."""

    def watch(self, total: int | None, *, shown: bool) -> AbstractContextManager[Progress]:
        """Count inside the block, with a bar if `shown`; `total` utterances, None where that is not known."""

    def asked(self) -> str:
        """Digest of what must be the same for all ranks of a job."""

    def to_share(self) -> Mapping[str, Any]:
        """What other ranks need to take part, as JSON can hold it."""

    def join(self, shared: Mapping[str, Any]) -> None:
        """Take part in what another rank has planned."""

    def counts(self) -> Mapping[str, Any]:
        """What this rank did, as JSON can hold it; nothing where the store itself says it."""
        return {}

    def add_counts(self, counts: Sequence[Mapping[str, Any]]) -> None:
        """Sum up what all ranks did."""


def run_operation(operation: Operation, storage: Storage, executor: Executor) -> None:
    """Run an operation as the one process that writes to a store.

    Raises:
        FeatureStoreError: It could not start or continue. Every published shard is whole.
    """
    with open_transaction(storage, operation.keep_replaced_days) as transaction:

        def write(tasks: Sequence[ShardTask]) -> None:
            transaction.run(tasks, lambda left: run_tasks(operation, executor, left))

        write(operation.begin(transaction))
        operation.end(transaction, write)


def run_tasks(operation: Operation, executor: Executor, tasks: Sequence[ShardTask], *, shown: bool = True) -> None:
    """Let an executor write the shards of tasks."""
    with operation.watch(sum(len(task.rows) for task in tasks), shown=shown) as progress:
        executor.run(operation.job(), tasks, progress)
