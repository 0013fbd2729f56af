"""Which example when: a pure function of the manifest, the seed, the epoch and the position, never of the store.

Hash order is cut into blocks; blocks are permuted and taken in windows of a few, and the examples of a window are
permuted. Global batch g is a slice of that sequence, a rank takes its part of it, a worker every num_workers-th batch.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.errors import ManifestError

Indices = npt.NDArray[np.int64]

_BLOCKS, _WINDOW, _INTERFERER, _AUGMENT = range(4)
"""Independent streams of random numbers."""


def generator(seed: int, epoch: int, *stream: int) -> np.random.Generator:
    """Random numbers that depend on these numbers and on nothing else."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, *stream])))


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """The examples of one epoch in their order.

    Attributes:
        example: Of each position, `(positions,)`.
        interferer: For dynamic mixing, an example whose source is mixed in: of another video, `(positions,)`; -1 where
            mixing is static.
    """

    example: Indices
    interferer: Indices


@dataclass(frozen=True, eq=False, kw_only=True)
class Order:
    """The order of every epoch.

    Attributes:
        utterance_of_example: Of every example of the manifest, in hash order, `(examples,)`.
        eligible: Examples that take part, ascending.
        seed: Of the permutations.
        batch_size: Examples per rank and step.
        world_size: Ranks.
        shuffle: Whether epochs are permuted; else every epoch is hash order.
        dynamic_mixing: Whether interferers are drawn.
        drop_last: Whether the last incomplete global batch is left out.
        block_size: Utterances that are read together.
        window_blocks: Blocks whose examples are mixed.
    """

    utterance_of_example: Indices
    eligible: Indices
    seed: int
    batch_size: int
    world_size: int = 1
    shuffle: bool
    dynamic_mixing: bool
    drop_last: bool
    block_size: int
    window_blocks: int

    def __post_init__(self) -> None:
        if self.dynamic_mixing and len(np.unique(self.utterance_of_example[self.eligible])) == 1:
            raise ManifestError(
                "dynamic mixing adds a source of another video, but the training set has only one; add utterances or "
                "set datamodule.data_config.train_mixing: static"
            )

    @property
    def global_batch(self) -> int:
        """Examples per step over all ranks."""
        return self.batch_size * self.world_size

    @property
    def num_batches(self) -> int:
        """Steps per epoch, the same on every rank."""
        whole, rest = divmod(len(self.eligible), self.global_batch)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int) -> EpochOrder:
        """All positions of an epoch. The last one asked for is kept."""
        return _cached_epoch(self, epoch)

    def positions(self, batch: int, rank: int) -> Indices:
        """Positions of a rank's rows of a global batch; none where the last batch is too short to give it some."""
        start = batch * self.global_batch
        count = min(self.global_batch, len(self.eligible) - start)
        bounds = [start + count * part // self.world_size for part in (rank, rank + 1)]
        return np.arange(*bounds, dtype=np.int64)

    def augmentation(self, epoch: int, position: int) -> np.random.Generator:
        """Random numbers for whatever is drawn for one row."""
        return generator(self.seed, epoch, _AUGMENT, position)

    def _compute(self, epoch: int) -> EpochOrder:
        windows = self._windows(epoch)
        interferers = [
            self._interferers(epoch, number, window) if self.dynamic_mixing else np.full(len(window), -1)
            for number, window in enumerate(windows)
        ]
        return EpochOrder(example=_joined(windows), interferer=_joined(interferers))

    def _windows(self, epoch: int) -> list[Indices]:
        """The examples of each window, in their order."""
        if not self.shuffle:
            return [self.eligible]
        block_of = self.utterance_of_example[self.eligible] // self.block_size
        blocks, starts = np.unique(block_of, return_index=True)
        parts = np.split(self.eligible, starts[1:])
        permuted = generator(self.seed, epoch, _BLOCKS).permutation(len(blocks))
        return [
            generator(self.seed, epoch, _WINDOW, number).permutation(
                _joined([parts[block] for block in permuted[first : first + self.window_blocks]])
            )
            for number, first in enumerate(range(0, len(blocks), self.window_blocks))
        ]

    def _interferers(self, epoch: int, number: int, window: Indices) -> Indices:
        """For each row of a window, a uniformly drawn one of another video; from the whole set where it has but one."""
        utterances = self.utterance_of_example[window]
        pool = np.sort(window if len(np.unique(utterances)) > 1 else self.eligible)  # examples of a video lie together
        pooled = self.utterance_of_example[pool]
        own, after = np.searchsorted(pooled, utterances), np.searchsorted(pooled, utterances, side="right")
        drawn = generator(self.seed, epoch, _INTERFERER, number).integers(len(pool) - (after - own))
        chosen: Indices = pool[np.where(drawn < own, drawn, drawn + after - own)]  # pass over the row's own video
        return chosen


@lru_cache(maxsize=4)
def _cached_epoch(order: Order, epoch: int) -> EpochOrder:
    return order._compute(epoch)


def _joined(parts: list[Any]) -> Indices:
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
