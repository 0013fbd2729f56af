"""Where the samples of shard tasks come from: clips to encode, an earlier tool's embeddings, or samples to copy.

All come through one pipeline (`write_shards`) into one ShardWriter.
"""

from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from shardwriter.format.plan import ShardTask
from shardwriter.format.record import Identity
from shardwriter.format.sample import Failed, Sample, Source, as_stored, encode_sample, metadata_of


class Planned(NamedTuple):
    """A row of a plan, and what is to be stored of it."""

    key: str
    mouth: str
    sample: Sample | Failed


class Samples(Protocol):
    """A source that is open."""

    def read(self, tasks: Iterator[ShardTask]) -> Generator[tuple[ShardTask, Iterator[Planned]]]:
        """The samples of tasks, task by task, row by row.

        A task is taken when reading comes to it, and at most one before the one that is being written: whoever shares
        tasks with others leaves them the rest.
        """


class SampleSource(Protocol):
    """Says where samples come from, by whole paths. Small, and sent to the processes that write shards; each opens it
    once."""

    def open(self, device: torch.device) -> Samples:
        """Get ready to read. Raises FeatureStoreError where something is missing here."""


def finish_sample(
    row: Mapping[str, Any],
    embedding: npt.NDArray[np.float32],
    audio: npt.NDArray[Any] | None,
    source: Source,
    identity: Identity,
) -> Sample | Failed:
    """What is stored of an utterance.

    Args:
        row: Of its plan.
        embedding: `(dim, frames)`, float32.
        audio: Its audio, 1-D, where the store holds audio.
        source: What it was made from.
        identity: Of the store.
    """
    stored = as_stored(embedding, identity.dtype)
    if stored is None:
        largest = np.abs(embedding).max()
        return Failed(
            reason=f"its embedding is not finite in {identity.dtype} (largest value {largest:.3g}); expected finite "
            "values. Check the weights, or store float32",
            source=source,
        )
    return encode_sample(stored, metadata_of(row, embedding.shape[1], identity.fps, source), source, audio)
