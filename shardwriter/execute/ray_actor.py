"""One process of a build on a Ray cluster: loads the encoder once, and writes the shards that it is given."""

import socket
from dataclasses import dataclass, field
from typing import Any

import torch

from iianet.errors import FeatureStoreError, StoreError
from shardwriter.encode.sources import Samples
from shardwriter.encode.write_shards import Progress, write_shards
from shardwriter.execute.executor import Job
from shardwriter.format.names import STORE_FILE
from shardwriter.format.plan import ShardTask


@dataclass(kw_only=True)
class Outcome:
    """What became of a task: all that was told of it, and why it could not be run."""

    told: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    error: FeatureStoreError | None = None

    def tell(self, progress: Progress) -> None:
        """Tell it again. Raises what there is to raise."""
        for name, facts in self.told:
            getattr(progress, name)(*facts)
        if self.error is not None:
            raise self.error

    def stored(self, split: str, key: str) -> None:
        self.told.append(("stored", (split, key)))

    def failed(self, split: str, key: str, mouth: str, reason: str) -> None:
        self.told.append(("failed", (split, key, mouth, reason)))

    def published(self, shard: str, stored_bytes: int, audio_bytes: int) -> None:
        self.told.append(("published", (shard, stored_bytes, audio_bytes)))


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
            write_shards(storage, [task], self._samples, outcome)
        except FeatureStoreError as error:
            outcome.error = error
        return outcome
