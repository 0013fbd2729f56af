"""One process of a build on a Ray cluster: loads the encoder once, and writes the shards that it is given."""

import socket
from dataclasses import dataclass, field

import torch

from iianet.errors import FeatureStoreError, StoreError
from shardwriter.encode.sources import Samples
from shardwriter.encode.write_shards import Progress, write_shards
from shardwriter.execute.executor import Event, Job, Relay
from shardwriter.format.names import STORE_FILE
from shardwriter.format.plan import ShardTask


@dataclass(kw_only=True)
class Outcome:
    """What became of a task.

    Attributes:
        events: In the order in which they happened.
        error: Why it could not be run.
    """

    events: list[Event] = field(default_factory=list)
    error: FeatureStoreError | None = None

    def report(self, progress: Progress) -> None:
        """Repeat the events. Raises the error, if there is one."""
        for name, *facts in self.events:
            getattr(progress, name)(*facts)
        if self.error is not None:
            raise self.error


class RayActor:
    """Writes shards with an encoder of its own.

    Args:
        job: What it needs.
        device: Type: cuda, of which Ray lets it see one, or cpu.
    """

    def __init__(self, job: Job, device: str) -> None:
        self._job = job
        self._device = torch.device(device)
        self._samples: Samples | None = None
        if device == "cpu":
            torch.set_num_threads(1)  # as many actors as processors

    def ready(self) -> None:
        """Answers when the actor has found a place."""

    def run(self, task: ShardTask) -> Outcome:
        """Write one shard."""
        outcome = Outcome()
        storage = self._job.storage
        try:
            if storage.version(STORE_FILE) is None:
                raise StoreError(
                    f"{storage.where(STORE_FILE)}: is not there on {socket.gethostname()}; a build on a cluster needs "
                    "a --shards folder that all nodes share, under the same path"
                )
            self._samples = self._samples or self._job.source.open(self._device)
            write_shards(storage, [task], self._samples, Relay(outcome.events.append))
        except FeatureStoreError as error:
            outcome.error = error
        return outcome
