"""What a training step receives."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Dropped(NamedTuple):
    """A skipped row: key of the utterance whose file cannot be used, and the reason, which names the file."""

    key: str
    reason: str


@dataclass(kw_only=True)
class Batch:
    """Examples of one step on one rank.

    Rows whose embedding is stored come with it; the others come with their mouth frames, to be encoded in the step. In
    raw mode that is all of them.

    Attributes:
        mixture: `(batch, num_samples)`, float32.
        target: The source to be separated, `(batch, num_samples)`, float32.
        embedding: `(batch, dim, frames)`, in the store's dtype; zeros in the rows that come as mouths.
        mouths: Crops of those rows, one clip after the other, `(sum of mouth_lengths, 88, 88)`, uint8. A clip has the
            segment's frames and, where the video continues, two more on both sides: the encoder sees that far.
        mouth_lengths: Frames of each clip.
        mouth_leads: Frames of each clip before the segment, 0 to 2.
        mouth_rows: Row of each clip.
        weight: 1 for an example, 0 for a row that only keeps a rank from standing idle, `(batch,)`, float32.
        keys: The target utterance of each row.
        num_examples: Rows of weight 1.
        examples: Number of each row's example in its manifest; none where there is no manifest.
        dropped: Skipped rows.
        bytes_read: Bytes of stored embeddings, npz and audio read for this batch.
    """

    mixture: Tensor
    target: Tensor
    embedding: Tensor
    mouths: Tensor
    mouth_lengths: tuple[int, ...]
    mouth_leads: tuple[int, ...]
    mouth_rows: tuple[int, ...]
    weight: Tensor
    keys: tuple[str, ...]
    num_examples: int
    examples: tuple[int, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    bytes_read: int = 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from where it is copied to a GPU while that computes."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        return len(self.keys)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def frames_over(num_samples: int, samples_per_frame: int) -> int:
    """Mouth frames that a number of samples spans, the last one perhaps in part."""
    return -(-num_samples // samples_per_frame)


def fit_frames(embedding: Tensor, frames: int) -> Tensor:
    """Cut an embedding `(dim, any)` to `(dim, frames)`; one that is short has its last column repeated.

    Real mouths can be a frame short of their audio.
    """
    lacking = frames - embedding.shape[1]
    if lacking <= 0:
        return embedding[:, :frames]
    return torch.cat([embedding, embedding[:, -1:].expand(-1, lacking)], dim=1)
