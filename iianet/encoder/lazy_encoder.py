"""The encoder of the fallback and of raw mode: loaded when the first mouth arrives, never when none does."""

import torch
from torch import Tensor

from iianet.batch import Batch, fit_frames
from iianet.encoder.kernels import Kernels
from iianet.encoder.protocol import Encoder
from iianet.encoder.source import EncoderSource


class LazyEncoder:
    """Encodes the mouths of batches. Deliberately no nn.Module: a checkpoint must not depend on whether it was loaded.

    Attributes:
        source: Source of the encoder and its weights.
        kernels: Settings of the store that training reads; None are those of the source.
        encoder: None until the first mouth.
    """

    def __init__(self, source: EncoderSource, kernels: Kernels | None = None) -> None:
        self.source = source
        self.kernels = kernels
        self.encoder: Encoder | None = None

    def complete(self, batch: Batch) -> Tensor:
        """The embeddings of a batch, with its mouths encoded into their rows: `(batch, dim, frames)`, float32.

        What is encoded here passes through the dtype of the stored rows, so that it equals what a float store would
        have held; what an int8 store would have held is less exact.
        """
        if not batch.mouth_lengths:
            return batch.embedding.float()
        embedding = batch.embedding.clone()
        clips = torch.split(batch.mouths, list(batch.mouth_lengths))
        encoded = self._on(batch.mouths.device).encode(clips)
        for row, lead, columns in zip(batch.mouth_rows, batch.mouth_leads, encoded, strict=True):
            embedding[row] = fit_frames(columns[:, lead:], embedding.shape[2])
        return embedding.float()

    def _on(self, device: torch.device) -> Encoder:
        if self.encoder is None:
            self.source.require_weights("utterances whose embeddings are not stored, or cannot be read any more")
            self.encoder = self.source.load(device, self.kernels.on(device) if self.kernels else None)
        return self.encoder.to(device)
