"""Rows of Batches from streamed examples: which are long enough, what is mixed into them, and how they are made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from iianet.batch import Batch, Dropped, fit_frames
from iianet.encoder.mouth import SAMPLES_PER_FRAME
from iianet.encoder.video_encoder import EMBEDDING_DIM
from iianet.errors import AudioError, ManifestError, MouthError, StoreError
from loaders.assemble import Row, collate
from loaders.audio import Segment
from loaders.mixing import Mixer
from loaders.stream_sample import StreamExample, read_embedding, read_examples
from shardwriter.inspect.tar_samples import RawSample

Item = StreamExample | Dropped
"""An example of a stream, or a sample that cannot be one."""


@dataclass(frozen=True)
class _Pair:
    """The audio of an example, 0, and of its interferer, 1: see `loaders.audio.Audio`."""

    examples: Sequence[StreamExample]
    num_samples: int

    def source(self, example: int, start: int) -> Segment:
        return self.examples[example].waves.source(start, self.num_samples)

    def mixture(self, example: int, start: int) -> Segment:
        return self.examples[example].waves.mixture(start, self.num_samples)


class Asked(NamedTuple):
    """A row to be made: an example, its segment's first frame, and for dynamic mixing the same of its interferer."""

    example: StreamExample
    start: int
    interferer: StreamExample | None = None
    interferer_start: int = 0


class Made(NamedTuple):
    """A row and its embedding, `(dim, frames)`; or why it could not be had."""

    row: Row | None
    embedding: torch.Tensor | None
    dropped: Dropped | None = None


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Makes rows of Batches out of streamed examples.

    Attributes:
        data_root: Folder below which wavs named by a json lie.
        num_samples: Of the segment.
        frames: Of the segment.
        sample_rate: Hz.
        normalise: Whether to bring mixtures to unit variance.
    """

    data_root: Path | None
    num_samples: int
    frames: int
    sample_rate: int
    normalise: bool

    def make(self, asked: Asked) -> Made:
        """A row; what is wrong with it is part of the answer."""
        try:
            return self._make(asked)
        except (AudioError, MouthError, StoreError) as error:
            return Made(None, None, Dropped(asked.example.key, str(error)))

    def batch(self, made: Sequence[Made]) -> Batch:
        """Put rows together. Where there are none, a silent one of weight 0 keeps the step going."""
        rows = [each.row for each in made if each.row is not None]
        dropped = [each.dropped for each in made if each.dropped is not None]
        embeddings = [each.embedding for each in made if each.embedding is not None]
        if len({embedding.dtype for embedding in embeddings}) > 1:
            embeddings = [embedding.float() for embedding in embeddings]
        together = torch.stack(embeddings or [torch.zeros(EMBEDDING_DIM, self.frames)])
        read = sum(embedding.nbytes for embedding in embeddings)
        return collate(rows, dropped, together, self.num_samples, read)

    def _make(self, asked: Asked) -> Made:
        example = asked.example
        pair = [example] if asked.interferer is None else [example, asked.interferer]
        mixed = Mixer(audio=_Pair(pair, self.num_samples), normalise=self.normalise).read(
            0,
            asked.start * SAMPLES_PER_FRAME,
            -1 if asked.interferer is None else 1,
            asked.interferer_start * SAMPLES_PER_FRAME,
        )
        embedding = read_embedding(example.sample)
        dim, frames = embedding.shape
        if dim != EMBEDDING_DIM:
            raise MouthError(
                f"{example.sample['__url__']}: {example.key}: its embedding has {dim} rows; expected {EMBEDDING_DIM}"
            )
        if not np.isfinite(embedding).all():
            raise MouthError(f"{example.sample['__url__']}: {example.key}: its embedding is not finite")
        kept = torch.from_numpy(embedding[:, min(asked.start, frames - 1) :].copy())
        row = Row(
            key=example.key,
            mixture=mixed.mixture,
            target=mixed.target,
            mouth=None,
            stored=(0, 0, 0),  # it is not read by its place
            bytes_read=mixed.bytes_read,
        )
        return Made(row, fit_frames(kept, self.frames))


def eligible_examples(samples: Iterator[RawSample], rows: RowMaker, too_short: torch.Tensor) -> Iterator[Item]:
    """The examples of samples that are as long as the segment, and what cannot be read of the others.

    Args:
        samples: As they come.
        rows: Knows the segment, and where the audio lies.
        too_short: Is added to for each that is left out, `(1,)`.
    """
    for sample in samples:
        try:
            examples = read_examples(sample, rows.data_root, rows.sample_rate)
            if not examples:
                raise StoreError(f"{sample['__url__']}: {sample['__key__']}: has no audio to train on")
        except (AudioError, StoreError) as error:
            yield Dropped(str(sample["__key__"]), str(error))
            continue
        long = [example for example in examples if example.num_samples >= rows.num_samples]
        too_short += len(examples) - len(long)
        yield from long


def with_interferers(items: Iterator[Item]) -> Iterator[tuple[Item, StreamExample | None]]:
    """Each example with the latest one before it that is of another utterance; the first ones with the next such.

    Raises:
        ManifestError: All are of one utterance.
    """
    waiting: list[StreamExample] = []
    latest = other = None
    for item in items:
        if isinstance(item, Dropped):
            yield item, None
            continue
        if latest is not None and item.key != latest.key:
            other = latest
            yield from ((first, item) for first in waiting)
            waiting.clear()
        latest = item
        if other is None:
            waiting.append(item)
        else:
            yield item, other
    if waiting:
        raise ManifestError(
            f"{waiting[0].sample['__url__']}: dynamic mixing adds a source of another utterance, but the shards that "
            "one worker reads have no other; set datamodule.data_config.train_mixing: static, or use fewer num_workers"
        )
