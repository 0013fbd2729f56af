"""What an encoder is: mouths go in, one embedding column for each frame comes out.

To add an encoder, write one file with a class of this shape, and add one line to `iianet.encoder.registry`. A config
names it (`videonet.videonet_name`); stores, loaders and training ask it for all that they need to know. Helpers are
`packing` (many clips in one call), `fingerprint` (a digest of weights) and `kernels` (settings of the arithmetic); a
network with the front end of IIANet's and a trunk of its own has all of them in `lip_encoder`, as `shuffle_encoder`
shows. tests/helpers/tiny_encoder.py is a whole encoder of another kind, and a short one;
tests/iianet/encoder/test_encoder_contract.py checks what this file promises: add yours to it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from iianet.encoder.kernels import Kernels


class Encoder(Protocol):
    """A frozen encoder with its weights, ready for use on one device.

    All encoders see the same frames: grey uint8 crops of 88 x 88 pixels (`iianet.encoder.mouth`), one clip for each
    utterance. An encoder cuts them to their first `crop_rows` rows and normalises them itself. What a clip becomes does
    not depend on the other clips of a call: on a CPU to the bit, on a GPU up to rounding.

    Attributes:
        name: Name in configs (`videonet.videonet_name`) and in the identity of stores.
        dim: Rows of an embedding.
        fps: Mouth frames, and so embedding columns, per second. It divides 16,000, so that a frame spans whole samples.
        context_frames: Frames that a column sees before its own frame, and as many after it. Zero where a column
            depends on its own frame alone.
        fewest_rows: Smallest `crop_rows` that it works with; 88 where it needs the whole crop.
        preprocessing: What happens to frames before the first layer, as the identity of stores records it: plain
            values, which JSON can hold. `EncoderSource` adds `crop_rows` where that is below 88.
        published: Where to find the published weights, for the error that says that they are missing.
        fingerprint: Digest of the weights: equal weights give an equal fingerprint on any device and with any kernels.
        kernels: Settings that it computes with.
        crop_rows: Rows of a crop that it sees, from the top.
    """

    name: ClassVar[str]
    dim: ClassVar[int]
    fps: ClassVar[int]
    context_frames: ClassVar[int]
    fewest_rows: ClassVar[int]
    preprocessing: ClassVar[Mapping[str, Any]]
    published: ClassVar[str]
    fingerprint: str
    kernels: Kernels
    crop_rows: int

    @classmethod
    def load(cls, pretrain: Path | None, seed: int, kernels: Kernels, crop_rows: int) -> Self:
        """Make the encoder on the CPU.

        Args:
            pretrain: Existing file with published weights; None draws random ones, for trials.
            seed: Seed of the random weights: an equal seed gives equal weights on any machine. Without effect where
                a file is given.
            kernels: Settings to compute with.
            crop_rows: Rows of a crop that it is to see, `fewest_rows` to 88.

        Raises:
            WeightsError: The file is damaged, or holds the weights of something else.
        """
        ...

    def columns(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Encode clips that lie one after the other.

        Args:
            frames: Crops, `(sum of lengths, 88, 88)`, uint8, on the encoder's device.
            lengths: Frames of each clip, at least one.

        Returns:
            Embedding columns, `(sum of lengths, dim)`, float32, without gradients.
        """
        ...

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Encode clips.

        Args:
            clips: Crops, `(frames, 88, 88)` each with at least one frame, uint8, on the encoder's device. There may be
                no clips.

        Returns:
            An embedding for each clip, `(dim, frames)`, float32, without gradients.
        """
        ...

    def to(self, device: torch.device) -> Self:
        """Move the encoder to a device, and return it."""
        ...
