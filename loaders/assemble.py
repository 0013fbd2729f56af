"""Assemble Batches: audio, stored embeddings, and mouths where there is none stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs.errors import AudioError, MouthError
from iianet.batch import Batch, Dropped
from iianet.mouth import CROP_SIZE
from iianet.video_encoder import EMBEDDING_DIM
from loaders.audio import Samples
from loaders.mixing import Mixer
from loaders.order import Order
from loaders.raw import RawMouths
from loaders.store import StoreReader
from shardwriter.manifest import Manifest

OnMissing = Literal["encode", "skip", "error"]


class _Row(NamedTuple):
    key: str
    mixture: Samples
    target: Samples
    mouth: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Assembler:
    """Turns positions of the order into a Batch.

    Attributes:
        manifest: Of the split.
        order: Of its examples.
        mixer: Reads audio.
        mouths: Reads the npz of what is not stored.
        store: Stored embeddings; None in raw mode.
        frames: Of the segment.
        on_missing: What to do with a row that is not stored: `encode` it in the step, or `skip` it. (`error` never gets
            here: the run does not start.)
        augment_mouth: Whether raw clips are cropped and flipped at random.
    """

    manifest: Manifest
    order: Order
    mixer: Mixer
    mouths: RawMouths
    store: StoreReader | None
    frames: int
    on_missing: OnMissing
    augment_mouth: bool

    def batch(self, epoch: int, positions: Sequence[int]) -> Batch:
        """The rows at some positions of an epoch. One that cannot be had is left out and listed; where none is left,
        a silent row of weight 0 keeps the step going."""
        rows: list[_Row] = []
        dropped: list[Dropped] = []
        for position in positions:
            key = self._key(epoch, position)
            try:
                rows.append(self._row(epoch, position, key))
            except (AudioError, MouthError) as error:
                dropped.append(Dropped(key, str(error)))
        return self._collate(rows, dropped)

    def _key(self, epoch: int, position: int) -> str:
        example = int(self.order.epoch(epoch).example[position])
        return self.manifest.utterances[self.manifest.examples[example].utterance].key

    def _row(self, epoch: int, position: int, key: str) -> _Row:
        epoch_order = self.order.epoch(epoch)
        example = int(epoch_order.example[position])
        mouth = None if self.store is not None and key in self.store else self._mouth(epoch, position, example)
        mixture, target = self.mixer.read(example, int(epoch_order.interferer[position]))
        return _Row(key, mixture, target, mouth)

    def _mouth(self, epoch: int, position: int, example: int) -> Tensor:
        utterance = self.manifest.utterances[self.manifest.examples[example].utterance]
        if self.on_missing == "skip" and self.store is not None:
            raise MouthError(f"{utterance.mouth}: not in the store {self.store.store}, and --on_missing skip")
        random = self.order.augmentation(epoch, position) if self.augment_mouth else None
        return self.mouths.read(utterance.mouth, random)

    def _collate(self, rows: Sequence[_Row], dropped: Sequence[Dropped]) -> Batch:
        silence = np.zeros((1, self.mixer.num_samples), dtype=np.float32)
        missing = [(index, row.mouth) for index, row in enumerate(rows) if row.mouth is not None]
        clips = [mouth for _, mouth in missing]
        return Batch(
            mixture=torch.from_numpy(np.stack([row.mixture for row in rows]) if rows else silence),
            target=torch.from_numpy(np.stack([row.target for row in rows]) if rows else silence),
            embedding=torch.from_numpy(self._stored(rows)),
            mouths=torch.cat(clips) if clips else torch.empty((0, CROP_SIZE, CROP_SIZE), dtype=torch.uint8),
            mouth_lengths=tuple(len(clip) for clip in clips),
            mouth_rows=tuple(index for index, _ in missing),
            weight=torch.ones(len(rows)) if rows else torch.zeros(1),
            keys=tuple(row.key for row in rows) if rows else ("",),
            num_examples=len(rows),
            dropped=tuple(dropped),
        )

    def _stored(self, rows: Sequence[_Row]) -> np.ndarray:
        dtype = np.float32 if self.store is None else self.store.dtype
        embedding = np.zeros((max(len(rows), 1), EMBEDDING_DIM, self.frames), dtype=dtype)
        for row, out in zip(rows, embedding, strict=False):
            if row.mouth is None:
                assert self.store is not None
                self.store.read_into(row.key, out)
        return embedding
