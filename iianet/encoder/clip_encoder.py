"""Encodes clips of any lengths, packed along time, with the kernels that suit the machine."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from iianet.encoder.folding import FrontEnd, fold_batch_norms
from iianet.encoder.kernels import DTYPES, MEMORY_FORMATS, Kernels
from iianet.encoder.mouth import CROP_SIZE, normalise
from iianet.encoder.video_encoder import CONTEXT_FRAMES, VideoEncoder

FEWEST = 2
"""Fewest frames encoded at a time: a single frame has kernels of its own, which round differently, so that an embedding
would depend on its pack."""


@contextmanager
def exact_kernels(device: torch.device) -> Iterator[None]:
    """Full float32 and repeatable kernels, whatever precision a Trainer has set around the encoder."""
    cudnn = torch.backends.cudnn
    with (
        torch.autocast(device.type, enabled=False),
        cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


class ClipEncoder(nn.Module):
    """A lip encoder ready for use; frozen, as the published one.

    Args:
        encoder: Encoder with its weights. It is copied, and not changed.
        kernels: Arithmetic and layout to use.

    Attributes:
        fingerprint: Digest of the encoder's weights, whatever the kernels.
    """

    def __init__(self, encoder: VideoEncoder, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.fingerprint = encoder.fingerprint()
        network = copy.deepcopy(encoder)
        self.front_end = FrontEnd(network.front_end, kernels.memory_format)
        fold_batch_norms(network.trunk)
        self.trunk = network.trunk
        self.requires_grad_(False)
        self.to(DTYPES[kernels.dtype])
        self.to(memory_format=MEMORY_FORMATS[kernels.memory_format])  # type: ignore[call-overload]
        self.train(False)

    def train(self, mode: bool = True) -> "ClipEncoder":  # noqa: ARG002 (frozen: there is no other mode)
        """Stay in eval mode, whatever a parent module or a Trainer asks for."""
        return super().train(False)

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Encode clips.

        Args:
            clips: Crops, uint8, each `(frames, 88, 88)` with at least one frame, on the encoder's device.

        Returns:
            An embedding per clip, `(512, frames)`, float32.
        """
        if not clips:
            return []
        lengths = [len(clip) for clip in clips]
        return [part.t() for part in torch.split(self.columns(torch.cat(list(clips)), lengths), lengths)]

    @torch.no_grad()
    def columns(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Encode clips that lie one after the other.

        The trunk works frame by frame and the front end sees two frames on either side, so with two zero frames
        between them clips do not touch: each comes out as if encoded alone.

        Args:
            frames: Crops, uint8, `(sum of lengths, 88, 88)`, on the encoder's device.
            lengths: Frames of each clip, at least one.

        Returns:
            Their embedding columns, `(sum of lengths, 512)`, float32.
        """
        keep = _frames_of_clips(lengths)
        padded = torch.zeros(len(keep) + 2 * CONTEXT_FRAMES + FEWEST, CROP_SIZE, CROP_SIZE, device=frames.device)
        padded[_places(keep, frames.device) + CONTEXT_FRAMES] = normalise(frames)
        columns = []
        with exact_kernels(frames.device):
            for begin in range(0, len(keep), self.kernels.max_frames):
                kept = keep[begin : begin + self.kernels.max_frames]
                window = padded[begin : begin + max(len(kept), FEWEST) + 2 * CONTEXT_FRAMES]
                features = self.front_end(window.to(DTYPES[self.kernels.dtype]))  # (positions, 64, 22, 22)
                features = features[_places(kept, features.device)]
                columns.append(self._trunk_columns(features))
        return torch.cat(columns)

    def _trunk_columns(self, features: Tensor) -> Tensor:
        """`(frames, 64, 22, 22)` -> `(frames, 512)`, float32."""
        count = len(features)
        if count < FEWEST:
            features = features.repeat(FEWEST, 1, 1, 1)
        columns: Tensor = self.trunk(features)[:count].float().mean(dim=(2, 3))
        return columns


def _frames_of_clips(lengths: Sequence[int]) -> Tensor:
    """Which positions of a pack are frames of clips, and not of the gaps between them, `(positions,)`, bool."""
    keep = torch.ones(sum(lengths) + CONTEXT_FRAMES * (len(lengths) - 1), dtype=torch.bool)
    end = 0
    for length in lengths[:-1]:
        end += length
        keep[end : end + CONTEXT_FRAMES] = False
        end += CONTEXT_FRAMES
    return keep


def _places(keep: Tensor, device: torch.device) -> Tensor:
    """Where `keep` is true. As indices: a mask on the GPU would wait for it."""
    return keep.nonzero()[:, 0].to(device, non_blocking=True)
