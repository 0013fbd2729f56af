"""Assemble Batches: audio, stored embeddings, and mouths where there is none stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from iianet.batch import Batch, Dropped
from iianet.encoder.mouth import CENTER_CROP, CROP_SIZE, SAMPLES_PER_FRAME, random_crop, view_crop
from iianet.encoder.video_encoder import EMBEDDING_DIM
from iianet.errors import AudioError, MouthError
from loaders.audio import Samples
from loaders.mixing import Mixer
from loaders.mouths import MouthSegment, RawMouths
from loaders.order import Order
from loaders.split import StoredEmbeddings
from shardwriter.corpus.manifest import Manifest

OnMissing = Literal["encode", "skip", "error"]


class _Where(NamedTuple):
    """What a position of the order asks for."""

    epoch: int
    position: int
    example: int
    utterance: int
    key: str
    view: int
    start: int


class Row(NamedTuple):
    """A row of a Batch.

    Its embedding is encoded from `mouth`, or read at `stored` (utterance, view and first frame), or comes beside it.
    """

    key: str
    mixture: Samples
    target: Samples
    bytes_read: int
    mouth: MouthSegment | None = None
    stored: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Assembler:
    """Turns positions of the order into a Batch.

    Attributes:
        manifest: Of the split.
        order: Of its examples.
        mixer: Makes audio.
        mouths: Reads the npz of what is not stored.
        stored: Stored embeddings; None in raw mode.
        num_samples: Of the segment.
        frames: Of the segment.
        on_missing: What to do with a row that is not stored: `encode` it in the step, or `skip` it. (`error` never gets
            here: the run does not start.)
        augment_mouth: Whether raw clips are cropped and flipped at random.
    """

    manifest: Manifest
    order: Order
    mixer: Mixer[int]
    mouths: RawMouths
    stored: StoredEmbeddings | None
    num_samples: int
    frames: int
    on_missing: OnMissing
    augment_mouth: bool

    def batch(self, epoch: int, positions: Sequence[int]) -> Batch:
        """The rows at some positions of an epoch. One that cannot be had is left out and listed; where none is left,
        a silent row of weight 0 keeps the step going."""
        rows: list[Row] = []
        dropped: list[Dropped] = []
        for position in positions:
            where = self._where(epoch, position)
            try:
                rows.append(self._row(where))
            except (AudioError, MouthError) as error:
                dropped.append(Dropped(where.key, str(error)))
        embedding, bytes_read = self._embeddings(rows)
        return collate(rows, dropped, torch.from_numpy(embedding), self.num_samples, bytes_read)

    def _where(self, epoch: int, position: int) -> _Where:
        order = self.order.epoch(epoch)
        example = int(order.example[position])
        utterance = int(self.order.utterance_of_example[example])
        key = str(self.manifest.utterances.column("key")[utterance])
        return _Where(epoch, position, example, utterance, key, int(order.view[position]), int(order.start[position]))

    def _row(self, where: _Where) -> Row:
        order = self.order.epoch(where.epoch)
        held = self.stored is not None and self.stored.has(where.utterance, where.view)
        mouth = None if held else self._mouth(where)
        interferer = int(order.interferer[where.position])
        mixed = self.mixer.read(
            where.example,
            where.start * SAMPLES_PER_FRAME,
            interferer if interferer >= 0 else None,
            int(order.interferer_start[where.position]) * SAMPLES_PER_FRAME,
        )
        return Row(
            key=where.key,
            mixture=mixed.mixture,
            target=mixed.target,
            bytes_read=mixed.bytes_read + (mouth.bytes_read if mouth else 0),
            mouth=mouth,
            stored=None if mouth else (where.utterance, where.view, where.start),
        )

    def _mouth(self, where: _Where) -> MouthSegment:
        path = str(self.manifest.utterances.column("mouth")[where.utterance])
        if self.on_missing == "skip" and self.stored is not None:
            raise MouthError(f"{path}: not in the store, and --on_missing skip")
        crop = view_crop(where.key, where.view) if where.view else CENTER_CROP
        if self.augment_mouth:
            crop = random_crop(self.order.augmentation(where.epoch, where.position))
        return self.mouths.read(path, where.start, crop)

    def _embeddings(self, rows: Sequence[Row]) -> tuple[np.ndarray, int]:
        """The stored ones, zeros elsewhere, and the bytes that were read."""
        dtype = np.dtype(np.float32) if self.stored is None else self.stored.dtype
        embedding = np.empty((max(len(rows), 1), EMBEDDING_DIM, self.frames), dtype=dtype)
        bytes_read = 0
        for index, out in enumerate(embedding):
            place = rows[index].stored if index < len(rows) else None
            if place is None or self.stored is None:
                out.fill(0)
                continue
            utterance, view, start = place
            bytes_read += self.stored.read_into(utterance, view, out, start)
        return embedding, bytes_read


def collate(
    rows: Sequence[Row], dropped: Sequence[Dropped], embedding: torch.Tensor, num_samples: int, bytes_read: int
) -> Batch:
    """Put rows together.

    Args:
        rows: Of the batch; where there are none, it gets a silent one of weight 0.
        dropped: Rows that could not be had.
        embedding: `(at least 1, dim, frames)`: what is stored, zeros in the rows that come as mouths.
        num_samples: Of the segment.
        bytes_read: Of the embeddings.
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
        dropped=tuple(dropped),
        bytes_read=bytes_read + sum(row.bytes_read for row in rows),
    )
