"""Who writes the shards of a job. ADD AN EXECUTOR: implement `Executor` in a file of its own, and name it in build_cli.

The others are several processes of this machine (`processes.py`) and a Ray cluster (`ray_cluster.py`). The ranks of a
job each have an executor, and share the tasks (`ranks.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from shardwriter.encode.sources import SampleSource
from shardwriter.encode.write_shards import Progress, write_shards
from shardwriter.format.plan import ShardTask
from shardwriter.storage.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process needs to write shards: small, and the same wherever it is sent.

    Attributes:
        storage: Where the store lies.
        source: Where the samples come from.
    """

    storage: Storage
    source: SampleSource


class Executor(Protocol):
    """Writes the shards of tasks, and counts each utterance and shard."""

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        """Write the shards of `tasks`, which are taken one by one as there is room for them.

        Args:
            job: What each process needs.
            tasks: In any order; each is the same whoever runs it.
            progress: Counts, in this process.

        Raises:
            FeatureStoreError: They cannot be run. Every published shard is whole.
        """


@dataclass(frozen=True)
class OneProcess:
    """Writes shards here, one after the other."""

    device: torch.device

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        """See `Executor`."""
        write_shards(job.storage, tasks, job.source.open(self.device), progress)
