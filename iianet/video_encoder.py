"""The frozen lip encoder: mouth frames -> one 512-vector per frame.

A 3-D convolution that sees five frames, then a ResNet-18 trunk per frame (Martinez et al., ICASSP 2020, as
`ResNetVideoModel` in JusperLee/IIANet). About 0.31 GMAC a frame. It is frozen: always in eval mode, always without
gradients, so that its BatchNorm neither uses nor drifts with batch statistics.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from iianet.mouth import CROP_SIZE, normalise

EMBEDDING_DIM = 512
CONTEXT_FRAMES = 2
"""Frames that an output column sees to its left and to its right."""
STAGE_CHANNELS = (64, 128, 256, 512)


@contextmanager
def exact_kernels(device: torch.device) -> Iterator[None]:
    """Full float32 and repeatable kernels, whatever precision a Trainer has set around the encoder."""
    cudnn = torch.backends.cudnn
    with (
        torch.autocast(device.type, enabled=False),
        cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and per-channel PReLU around a shortcut: one ResNet-18 basic block."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.PReLU(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, height, width)` -> `(batch, out_channels, height/stride, width/stride)`."""
        out = self.act1(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out = out + self.shortcut(x)
        result: Tensor = self.act2(out)
        return result


class VideoEncoder(nn.Module):
    """Frozen ResNet-18 lip encoder. Weights are random until some are loaded (`iianet.checkpoint.load_published`).

    Args:
        max_frames: Frames encoded at a time, which bounds memory whatever the length of a clip: about 2 MB a frame.
    """

    def __init__(self, max_frames: int = 64) -> None:
        super().__init__()
        self.max_frames = max_frames
        self.front_end = nn.Sequential(
            nn.Conv3d(1, 64, (5, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.PReLU(64),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        blocks: list[nn.Module] = []
        for in_channels, out_channels in pairwise((64, *STAGE_CHANNELS)):
            blocks.append(ResidualBlock(in_channels, out_channels, stride=1 if out_channels == 64 else 2))
            blocks.append(ResidualBlock(out_channels, out_channels, stride=1))
        self.trunk = nn.Sequential(*blocks)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "VideoEncoder":  # noqa: ARG002 (frozen: there is no other mode)
        """Stay in eval mode, whatever a parent module or a Trainer asks for."""
        return super().train(False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill with He-normal weights (fan out, as the reference initialises) from `seed`, the same on any device."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * math.sqrt(2.0 / fan_out))

    @torch.no_grad()
    def forward(self, mouths: Tensor) -> Tensor:
        """Encode clips of one length.

        Args:
            mouths: Normalised crops, `(batch, 1, frames, 88, 88)`.

        Returns:
            Embeddings, `(batch, 512, frames)`.
        """
        columns = [self._columns(_pad_time(clip[0])) for clip in mouths]
        return torch.stack(columns).transpose(1, 2)  # (batch, 512, frames)

    @torch.no_grad()
    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Encode clips of any lengths, packed along time.

        The trunk works frame by frame and the front end sees two frames on either side, so with two zero frames
        between them clips do not touch: each comes out as if encoded alone.

        Args:
            clips: Centre crops, uint8, each `(frames, 88, 88)` with at least one frame, on the encoder's device.

        Returns:
            An embedding per clip, `(512, frames)`, in the encoder's dtype.
        """
        if not clips:
            return []
        gap = next(self.parameters()).new_zeros(CONTEXT_FRAMES, CROP_SIZE, CROP_SIZE)
        pieces: list[Tensor] = [gap]
        for clip in clips:
            pieces += [normalise(clip), gap]
        lengths = [len(clip) for clip in clips]
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length + CONTEXT_FRAMES)
        with exact_kernels(gap.device):
            columns = self._columns(torch.cat(pieces).to(gap.dtype), starts=starts[:-1], lengths=lengths)
        return [part.t() for part in torch.split(columns, lengths)]

    def _columns(self, padded: Tensor, starts: Sequence[int] = (0,), lengths: Sequence[int] | None = None) -> Tensor:
        """Encode the frames of a pack.

        Args:
            padded: Normalised frames with two zero frames before, between and after the clips, `(frames, 88, 88)`.
            starts: First output position of each clip.
            lengths: Frames of each clip; all of the pack where it is one clip.

        Returns:
            Embedding columns of the clips' frames, one clip after the other, `(sum of lengths, 512)`.
        """
        positions = len(padded) - 2 * CONTEXT_FRAMES
        keep = torch.zeros(positions, dtype=torch.bool)
        for start, length in zip(starts, lengths or [positions], strict=True):
            keep[start : start + length] = True
        columns = []
        for begin in range(0, positions, self.max_frames):
            end = min(begin + self.max_frames, positions)
            window = padded[begin : end + 2 * CONTEXT_FRAMES]
            features = self.front_end(window[None, None])[0].transpose(0, 1)  # (positions, 64, 22, 22)
            kept = features[
                keep[begin:end].nonzero()[:, 0].to(features.device)
            ]  # indices: a mask would wait for the GPU
            columns.append(self.trunk(kept).mean(dim=(2, 3)))  # (kept, 512)
        return torch.cat(columns)

    def fingerprint(self) -> str:
        """Digest of the weights and statistics, whatever file they came from: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                continue  # counts training steps, which do not change what the encoder computes
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name}{tuple(values.shape)}".encode())
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()[:16]


def _pad_time(frames: Tensor) -> Tensor:
    """Add the two zero frames that the front end sees beyond either end of a clip, `(frames + 4, 88, 88)`."""
    return nn.functional.pad(frames, (0, 0, 0, 0, CONTEXT_FRAMES, CONTEXT_FRAMES))
