"""Which example when: a pure function of the manifest, the seed, the epoch and the position, never of the store.

Hash order is cut into blocks; blocks are permuted and taken in windows of a few, and the examples of a window are
permuted. Global batch g is a slice of that sequence, a rank takes its part of it, a worker every num_workers-th batch.

With lanes, hash order is first cut into as many equal parts, each is permuted so on its own, and a global batch takes
equally many examples of each: the ranks of one node then read one part of the shards. The order depends on the number
of lanes and not on how many nodes share them.

In dynamic mixing, an interferer is drawn for each example out of its window: of another group, which is another
utterance, or of another speaker or video where the config says so. Where a window is of one group alone, its
interferers come from the lane, and where that is of one group too, from the whole set; if that is, it is refused. So
no two examples of a group are ever mixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from iianet.errors import ConfigError, ManifestError

Indices = npt.NDArray[np.int64]

_BLOCKS, _WINDOW, _INTERFERER, _AUGMENT, _VIEW, _SEGMENT = range(6)
"""Independent streams of random numbers."""


def generator(seed: int, epoch: int, *stream: int) -> np.random.Generator:
    """Random numbers that depend on these numbers and on nothing else."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, *stream])))


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """The examples of one epoch in their order; every array is `(positions,)`.

    Attributes:
        example: Of each position.
        window: Of each position: within a lane ascending, and what is read together.
        interferer: For dynamic mixing, an example whose source is mixed in: of another group; -1 in static mixing.
        view: Which embedding of the utterance is used; 0 is the centre crop.
        start: First mouth frame of the segment.
        interferer_start: First mouth frame of the interferer's segment.
    """

    example: Indices
    window: Indices
    interferer: Indices
    view: Indices
    start: Indices
    interferer_start: Indices


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
        lanes: Parts of hash order that are permuted apart; only where the last incomplete batch is left out.
        views: Augmented embeddings of each utterance to choose from, beside the centre crop: one a block and epoch.
        spare_frames: Frames by which each example is longer than the segment, `(examples,)`: the segment starts at
            random within them. None starts it at 0.
        group_of_example: Group of every example, `(examples,)`: no two of one are mixed. None: its utterance.
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
    lanes: int = 1
    views: int = 0
    spare_frames: Indices | None = None
    group_of_example: Indices | None = None

    def __post_init__(self) -> None:
        if self.dynamic_mixing and len(np.unique(self._groups[self.eligible])) == 1:
            what, cure = "utterance", "train_mixing: static"
            if self.group_of_example is not None:
                what, cure = "group than its own (mix_apart)", "mix_apart: null"
            raise ManifestError(
                f"dynamic mixing adds a source of another {what}, but the training set has only one; add utterances or "
                f"set datamodule.data_config.{cure}"
            )
        if self.lanes > 1 and (not self.drop_last or self.global_batch % self.lanes):
            raise ConfigError(
                f"datamodule.data_config.order_lanes is {self.lanes}, and a step has {self.global_batch} examples "
                f"({self.batch_size} on each of {self.world_size} ranks); expected a multiple of the lanes"
            )

    @property
    def _groups(self) -> Indices:
        return self.utterance_of_example if self.group_of_example is None else self.group_of_example

    @property
    def global_batch(self) -> int:
        """Examples per step over all ranks."""
        return self.batch_size * self.world_size

    @property
    def num_batches(self) -> int:
        """Steps per epoch, the same on every rank."""
        if self.lanes > 1:
            return len(self.eligible) // self.lanes // (self.global_batch // self.lanes)
        whole, rest = divmod(len(self.eligible), self.global_batch)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int) -> EpochOrder:
        """All positions of an epoch. The last ones asked for are kept."""
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
        lanes = [self._lane(epoch, lane, part) for lane, part in enumerate(np.array_split(self.eligible, self.lanes))]
        example, window, interferer = (self._interleaved(column) for column in zip(*lanes, strict=True))
        return EpochOrder(
            example=example,
            window=window,
            interferer=interferer,
            view=self._views(epoch, example),
            start=self._starts(epoch, 0, example),
            interferer_start=self._starts(epoch, 1, interferer),
        )

    def _lane(self, epoch: int, lane: int, part: Indices) -> tuple[Indices, Indices, Indices]:
        """Example, window and interferer of the positions of one lane."""
        windows = self._windows(epoch, lane, part)
        interferers = [
            self._interferers(epoch, lane, number, window, part) if self.dynamic_mixing else np.full(len(window), -1)
            for number, window in enumerate(windows)
        ]
        numbers = [np.full(len(window), number) for number, window in enumerate(windows)]
        return _joined(windows), _joined(numbers), _joined(interferers)

    def _windows(self, epoch: int, lane: int, part: Indices) -> list[Indices]:
        """The examples of each window, in their order."""
        block_of = self.utterance_of_example[part] // self.block_size
        blocks, starts = np.unique(block_of, return_index=True)
        parts = np.split(part, starts[1:])
        order = np.arange(len(blocks))
        if self.shuffle:
            order = generator(self.seed, epoch, _BLOCKS, lane).permutation(order)
        windows = [
            _joined([parts[block] for block in order[first : first + self.window_blocks]])
            for first in range(0, len(blocks), self.window_blocks)
        ]
        if not self.shuffle:
            return windows
        return [
            generator(self.seed, epoch, _WINDOW, lane, number).permutation(window)
            for number, window in enumerate(windows)
        ]

    def _interferers(self, epoch: int, lane: int, number: int, window: Indices, part: Indices) -> Indices:
        """For each row of a window, a uniformly drawn one of another group; where the window has but one group, of the
        lane, and where that has but one too, of the whole set."""
        pools = (pool for pool in (window, part, self.eligible) if len(np.unique(self._groups[pool])) > 1)
        pool = np.sort(next(pools))
        pool = pool[np.argsort(self._groups[pool], kind="stable")]  # examples of a group lie together
        pooled, groups = self._groups[pool], self._groups[window]
        own, after = np.searchsorted(pooled, groups), np.searchsorted(pooled, groups, side="right")
        drawn = generator(self.seed, epoch, _INTERFERER, lane, number).integers(len(pool) - (after - own))
        chosen: Indices = pool[np.where(drawn < own, drawn, drawn + after - own)]  # pass over the row's own group
        return chosen

    def _interleaved(self, lanes: Sequence[Indices]) -> Indices:
        """Lane after lane within each global batch. What is left of the lanes behind the last batch is left out."""
        if len(lanes) == 1:
            return lanes[0]
        share = self.global_batch // self.lanes
        rows = self.num_batches * share
        return np.concatenate([lane[:rows].reshape(-1, share) for lane in lanes], axis=1).reshape(-1)

    def _views(self, epoch: int, example: Indices) -> Indices:
        """One view a block, so that of the other views nothing is read."""
        if not self.views:
            return np.zeros(len(example), dtype=np.int64)
        block = self.utterance_of_example[example] // self.block_size
        drawn = generator(self.seed, epoch, _VIEW).integers(self.views + 1, size=int(block.max(initial=0)) + 1)
        chosen: Indices = drawn[block]
        return chosen

    def _starts(self, epoch: int, stream: int, example: Indices) -> Indices:
        if self.spare_frames is None:
            return np.zeros(len(example), dtype=np.int64)
        spare = np.where(example < 0, 0, self.spare_frames[example])
        return generator(self.seed, epoch, _SEGMENT, stream).integers(spare + 1)


@lru_cache(maxsize=4)
def _cached_epoch(order: Order, epoch: int) -> EpochOrder:
    return order._compute(epoch)


def _joined(parts: list[Any]) -> Indices:
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
