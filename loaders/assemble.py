"""Assemble Batches: audio, stored embeddings, and the mouths of rows whose embedding is not stored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from iianet.batch import Batch, Dropped, frames_over
from iianet.encoder.mouth import CENTER_CROP, CROP_SIZE, Crop, random_crop, view_crop
from iianet.errors import AudioError, MouthError
from loaders.audio import Samples
from loaders.mixing import Mixer, dropped
from loaders.order import Order
from loaders.split import LostShard, Split
from shardwriter.corpus.mouth_npz import read_mouth_npz

FLOAT_BYTES = 4


class MouthSegment(NamedTuple):
    """Crops of a segment with the frames around it that its first and last columns see.

    Attributes:
        frames: `(at most lead + frames + 2, 88, 88)`, uint8.
        lead: Frames before the segment, up to `context_frames` of the encoder.
        bytes_read: Bytes of the npz.
    """

    frames: torch.Tensor
    lead: int
    bytes_read: int


class Row(NamedTuple):
    """A row of a Batch, without its embedding.

    Attributes:
        key: Key of the target utterance.
        mixture: `(num_samples,)`.
        target: `(num_samples,)`.
        bytes_read: Bytes read for the audio and the mouth.
        mouth: Frames to encode the embedding from; None where it is stored.
        stored: Utterance, view and first frame of a stored embedding.
        example: Number of the example in its manifest; None where there is none.
    """

    key: str
    mixture: Samples
    target: Samples
    bytes_read: int
    mouth: MouthSegment | None = None
    stored: tuple[int, int, int] | None = None
    example: int | None = None


@dataclass(frozen=True, kw_only=True)
class Assembler:
    """Turns positions of the order into a Batch.

    Attributes:
        split: Utterances, examples and stored embeddings.
        order: Order of the examples.
        mixer: Makes the audio.
        frames: Video frames of the segment.
        context_frames: Frames that the encoder sees before the segment, and after it.
        dim: Rows of an embedding.
        skip_missing: Whether a row that is not stored is left out; else it is encoded in the step.
        augment_mouth: Whether raw clips are cropped and flipped at random.
    """

    split: Split
    order: Order
    mixer: Mixer[int]
    frames: int
    context_frames: int
    dim: int
    skip_missing: bool
    augment_mouth: bool

    @property
    def batch_bytes(self) -> int:
        """Bytes of a batch; with the mouths of all its rows in raw mode, else of none."""
        stored, values = self.split.stored, self.dim * self.frames
        video = FLOAT_BYTES * values + (self.frames + 2 * self.context_frames) * CROP_SIZE**2
        if stored is not None:
            video = stored.centre.dtype.itemsize * values
        return self.order.batch_size * row_bytes(self.split.num_samples, video)

    def of_length(self, num_samples: int) -> "Assembler":
        """The same for segments of another length."""
        return replace(
            self,
            split=replace(self.split, num_samples=num_samples),
            mixer=replace(self.mixer, num_samples=num_samples),
            frames=frames_over(num_samples, self.split.samples_per_frame),
        )

    def batch(self, epoch: int, positions: Sequence[int]) -> Batch:
        """Assemble the rows at some positions of an epoch. A row that cannot be read is left out and listed.

        Of no positions, as a rank may have in the last batch, it is silent: a step without rows would hang the others.

        Raises:
            StoreError: A shard cannot be read, and on_missing is error.
        """
        rows: list[Row] = []
        lost: list[Dropped] = []
        order = self.order.epoch(epoch)
        for position in positions:
            example = int(order.example[position])
            utterance = int(self.order.utterance_of_example[example])
            key = self._key(example)
            try:
                rows.append(self._row(key, epoch, position, example, utterance))
            except (AudioError, MouthError) as error:
                lost.append(dropped(error, key, self._key(int(order.interferer[position]))))
        try:
            embedding, bytes_read = self._embeddings(rows)
        except LostShard:
            return self.batch(epoch, positions)  # without it
        return collate(rows, lost, torch.from_numpy(embedding), self.split.num_samples, bytes_read)

    def _key(self, example: int) -> str:
        """Key of an example's utterance."""
        return str(self.split.manifest.utterances.column("key")[int(self.order.utterance_of_example[example])])

    def _row(self, key: str, epoch: int, position: int, example: int, utterance: int) -> Row:
        order = self.order.epoch(epoch)
        view, start, interferer = (int(column[position]) for column in (order.view, order.start, order.interferer))
        stored = self.split.stored is not None and self.split.stored.has(utterance, view)
        mouth = None if stored else self._mouth(key, epoch, position, utterance)
        mixed = self.mixer.read(
            example,
            start * self.split.samples_per_frame,
            interferer if interferer >= 0 else None,
            int(order.interferer_start[position]) * self.split.samples_per_frame,
        )
        bytes_read = mixed.bytes_read + (mouth.bytes_read if mouth else 0)
        place = (utterance, view, start) if stored else None
        return Row(key, mixed.mixture, mixed.target, bytes_read, mouth, place, example)

    def _mouth(self, key: str, epoch: int, position: int, utterance: int) -> MouthSegment:
        path = str(self.split.manifest.utterances.column("mouth")[utterance])
        if self.skip_missing:
            raise MouthError(f"{path}: not in the store, and --on_missing skip")
        order = self.order.epoch(epoch)
        view = int(order.view[position])
        crop = view_crop(key, view) if view else CENTER_CROP
        if self.augment_mouth:
            crop = random_crop(self.order.augmentation(epoch, position))
        npz = self.split.manifest.data_root / path
        return read_mouth_segment(npz, int(order.start[position]), self.frames, self.context_frames, crop)

    def _embeddings(self, rows: Sequence[Row]) -> tuple[npt.NDArray[Any], int]:
        """The stored embeddings, zeros in other rows, and the bytes read for them."""
        source = self.split.stored
        dtype = np.dtype(np.float32) if source is None else source.centre.dtype
        embedding = np.empty((max(len(rows), 1), self.dim, self.frames), dtype=dtype)
        bytes_read = 0
        for index, out in enumerate(embedding):
            stored = rows[index].stored if rows else None
            if stored is None or source is None:
                out.fill(0)
            else:
                bytes_read += source.read(*stored, out)
        return embedding, bytes_read


def read_mouth_segment(path: Path, start: int, frames: int, context_frames: int, crop: Crop) -> MouthSegment:
    """Read a clip's segment.

    Args:
        path: Path of the npz.
        start: First frame of the segment; where the clip is shorter, its last one.
        frames: Video frames of the segment.
        context_frames: Frames that the encoder sees before the segment, and after it.
        crop: Part of each frame to cut out.

    Raises:
        MouthError: The npz cannot be used.
    """
    npz = read_mouth_npz(path)
    first = min(start, len(npz.frames) - 1)
    lead = min(first, context_frames)
    cropped = crop.apply(npz.frames[first - lead : first + frames + context_frames])
    return MouthSegment(torch.from_numpy(cropped), lead, npz.source.size or 0)


def row_bytes(num_samples: int, embedding_bytes: int) -> int:
    """Bytes of a row of a Batch: mixture, target, and what there is of its video."""
    return 2 * num_samples * FLOAT_BYTES + embedding_bytes


def collate(
    rows: Sequence[Row], lost: Sequence[Dropped], embedding: torch.Tensor, num_samples: int, bytes_read: int
) -> Batch:
    """Put rows together; where there are none, a silent one of weight 0 keeps the step going.

    Args:
        rows: Rows of the batch.
        lost: Rows that could not be read.
        embedding: `(at least 1, dim, frames)`, zeros in the rows that come as mouths.
        num_samples: Audio samples of the segment.
        bytes_read: Bytes read for the embeddings.
    """
    silence = np.zeros((1, num_samples), dtype=np.float32)
    clips = [(index, row.mouth) for index, row in enumerate(rows) if row.mouth is not None]
    frames = [mouth.frames for _, mouth in clips]
    return Batch(
        mixture=torch.from_numpy(np.stack([row.mixture for row in rows]) if rows else silence),
        target=torch.from_numpy(np.stack([row.target for row in rows]) if rows else silence),
        embedding=embedding,
        mouths=torch.cat(frames) if frames else torch.empty((0, CROP_SIZE, CROP_SIZE), dtype=torch.uint8),
        mouth_lengths=tuple(len(clip) for clip in frames),
        mouth_leads=tuple(mouth.lead for _, mouth in clips),
        mouth_rows=tuple(index for index, _ in clips),
        weight=torch.ones(len(rows)) if rows else torch.zeros(1),
        keys=tuple(row.key for row in rows) if rows else ("",),
        num_examples=len(rows),
        examples=tuple(row.example for row in rows if row.example is not None),
        dropped=tuple(lost),
        bytes_read=bytes_read + sum(row.bytes_read for row in rows),
    )
