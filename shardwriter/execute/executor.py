"""Who runs the tasks of a build: this process, several on this machine, or a cluster."""

from collections.abc import Iterable
from typing import Protocol

from shardwriter.encode.job import Recipe
from shardwriter.encode.tasks import Encoding, Progress, run_tasks
from shardwriter.format.plan import ShardTask


class Executor(Protocol):
    """Runs tasks, and tells of each utterance and shard."""

    def run(self, recipe: Recipe, encoding: Encoding, tasks: Iterable[ShardTask], progress: Progress) -> None:
        """Write the shards of `tasks`, which are taken one by one as there is room for them.

        Args:
            recipe: For processes that load an encoder of their own.
            encoding: With the encoder of this process.
            tasks: In any order; each is as it is whoever runs it.
            progress: Is told in this process.

        Raises:
            FeatureStoreError: They cannot be run. Every published shard is whole.
        """


class OwnProcess:
    """Runs tasks here, one after the other."""

    def run(self, recipe: Recipe, encoding: Encoding, tasks: Iterable[ShardTask], progress: Progress) -> None:
        """See `Executor`."""
        run_tasks(recipe.store, recipe.data_root, tasks, encoding, progress)
