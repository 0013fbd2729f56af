"""The examples that a trained separator is evaluated on: all of a split, whole or their first seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from iianet.batch import Batch
from iianet.config.schema import Config
from iianet.encoder.source import EncoderSource
from iianet.launch import usable_cores
from loaders.datamodule import SeparationData
from loaders.dataset import BatchLoader, ExampleDataset
from loaders.epochs import BEGINNING
from loaders.order import Indices, Order
from loaders.split import Split
from shardwriter.store.snapshot import Snapshot


class ExampleName(NamedTuple):
    """What tells an example from all others.

    Attributes:
        key: Key of the target utterance.
        mixture: Path of the mixture's wav, as the lists give it below data_root.
        target: Path of the target's wav, likewise.
    """

    key: str
    mixture: str
    target: str


@dataclass(frozen=True, kw_only=True, eq=False)
class EqualLengths(Order):
    """Hash order, in which the examples of a window that are equally long follow each other and make batches.

    A batch is of one window, so shards are read as in training, each once.

    Attributes:
        lengths: Samples that are read of each example, `(examples,)`.
    """

    lengths: Indices

    @property
    def num_batches(self) -> int:
        """Batches of all examples."""
        return len(self._starts_and_end) - 1

    def positions(self, batch: int, rank: int) -> Indices:
        """Positions of a batch; there is one rank."""
        assert rank == 0, "examples are evaluated by one process"
        return np.arange(*self._starts_and_end[batch : batch + 2], dtype=np.int64)

    def _windows(self, epoch: int, lane: int, part: Indices) -> list[Indices]:
        windows = super()._windows(epoch, lane, part)
        return [window[np.argsort(self.lengths[window], kind="stable")] for window in windows]

    @cached_property
    def _starts_and_end(self) -> Indices:
        """First position of each batch, and the number of positions."""
        order = self.epoch(0)
        lengths = self.lengths[order.example]
        changes = (np.diff(lengths) != 0) | (np.diff(order.window) != 0)
        runs = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(lengths)]])
        starts = [np.arange(first, end, self.batch_size) for first, end in pairwise(runs.tolist())]
        return np.concatenate([*starts, [len(lengths)]]).astype(np.int64)


class EvaluationData(SeparationData):
    """Loaders of one split's examples, each of them once.

    Args:
        config: Configuration, whose batch_size and num_workers count.
        snapshots: Opened stores, built with the same settings; none is raw mode.
        build_command: Command that would add missing utterances, for the message about them.
        name: Name of the split: train, val or test.
        segment: Seconds of each example, from its start on, and shorter ones are left out; None takes whole examples.
    """

    def __init__(
        self, config: Config, snapshots: Sequence[Snapshot], build_command: str, name: str, segment: float | None
    ) -> None:
        super().__init__(config, snapshots, build_command, names=(name,), shortest=segment or 1 / config.encoder.fps)
        self.split_name = name
        self.segment = segment

    @property
    def opened(self) -> Split:
        """The split, opened; its eligible examples can be evaluated."""
        return self.splits[self.split_name]

    @property
    def skipped(self) -> Indices:
        """Eligible examples that --on_missing skip leaves out, since their utterance is not stored."""
        opened = self.opened
        if opened.stored is None or self.options.on_missing != "skip":
            return opened.eligible[:0]
        utterances = opened.manifest.utterance_of_example()[opened.eligible]
        left_out: Indices = opened.eligible[opened.stored.rows[0, utterances] < 0]
        return left_out

    def example_names(self) -> list[ExampleName]:
        """Name of each example of the split by its number, also of those that are too short."""
        manifest = self.opened.manifest
        keys = manifest.utterances.column("key").take(manifest.examples.column("utterance")).to_pylist()
        wavs = (manifest.examples.column(kind).to_pylist() for kind in ("mixture", "source"))
        return [ExampleName(*names) for names in zip(keys, *wavs, strict=True)]

    def facts(self, source: EncoderSource, device: torch.device) -> dict[str, Any]:
        """What decides the figures of an example, beside the separator; `source` encodes what is not stored."""
        return {
            "split": self.split_name,
            "num_samples": None if self.segment is None else self.opened.num_samples,
            "examples": self.opened.manifest.digest(),
            "embeddings": [self._stored(snapshot) for snapshot in self.snapshots] or [_encoded(source, device)],
            "normalize_audio": self.options.normalize_audio,
        }

    def _stored(self, snapshot: Snapshot) -> str:
        """A store's arithmetic; where its encoder is unknown, the digests of the split's shards."""
        identity = snapshot.identity
        encoder = identity.encoder.get("fingerprint")
        if encoder is None:
            shards = sorted(record.tar_digest for record in snapshot.split(self.split_name, ("key",)).shards)
            encoder = f"unknown encoder, shards {', '.join(shards)}"
        precision = identity.precision.get("dtype")
        return f"stored as {identity.dtype}, {encoder}, {precision}, {dict(identity.preprocessing)}"

    def lengths(self) -> Indices:
        """Samples that are read of each example, `(examples,)`."""
        lengths = self.opened.manifest.num_samples()
        return lengths if self.segment is None else np.full_like(lengths, self.opened.num_samples)

    def examples_loader(self, examples: Indices) -> BatchLoader:
        """Batches of some eligible examples, each of one length; the order is the split's, whatever theirs is."""
        lengths = self.lengths()
        order = EqualLengths(
            utterance_of_example=self.opened.manifest.utterance_of_example(),
            eligible=np.sort(examples),
            seed=self.config.training.seed,
            batch_size=self.options.batch_size,
            shuffle=False,
            dynamic_mixing=False,
            drop_last=False,
            block_size=self.options.block_size,
            window_blocks=self.options.window_blocks,
            lengths=lengths,
        )
        assembler = self.assembler(self.split_name, order).of_length(int(lengths[examples].max()))
        dataset = EqualLengthDataset(assembler, 0, self.read_ahead(self.opened), start=BEGINNING, advances=False)
        options = self.loader_options(usable_cores(), "cores")
        if len(dataset) <= options["num_workers"]:  # workers take longer to start than these batches to read
            options |= {"num_workers": 0, "persistent_workers": False}
        return BatchLoader(dataset, **options)


def _encoded(source: EncoderSource, device: torch.device) -> str:
    """The arithmetic of mouths that are encoded anew."""
    weights = source.digest or f"random weights of seed {source.seed}"
    return f"raw mouths, {source.name}, {weights}, {source.kernels(device).dtype}, {dict(source.preprocessing)}"


class EqualLengthDataset(ExampleDataset):
    """Batches of examples of one length, which differs from batch to batch."""

    def assembled(self, epoch: int, positions: Indices) -> Batch:
        """The batch at some positions."""
        assert isinstance(self.order, EqualLengths)
        example = int(self.order.epoch(epoch).example[positions[0]])
        return self.assembler.of_length(int(self.order.lengths[example])).batch(epoch, positions.tolist())
