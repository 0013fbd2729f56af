"""Crop and normalise mouth frames: the one preprocessing, used by the build, by raw mode and by the fallback.

Source: `get_preprocessing_pipelines` of the reference (JusperLee/IIANet): scale to 0..1, crop 88 x 88, subtract the
mean and divide by the standard deviation of LRW mouths. Cropping commutes with both, so it is done first, on uint8.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor  # whoever needs sizes and rates alone is spared the seconds that torch takes

FRAME_SIZE = 96
"""Height and width of stored mouth frames, pixels."""
CROP_SIZE = 88
"""Height and width of the crop, pixels. The encoder sees all of it, or its first `crop_rows` rows."""
CROP_ROWS = "crop_rows"
"""Name of how many rows of the crop the encoder sees: in configs, and in the identity of stores where not all."""
MEAN = 0.421
"""Mean grey level of the mouths of LRW, of 0 to 1."""
STD = 0.165
"""Standard deviation of the grey levels of the mouths of LRW."""
FPS = 25
"""Mouth frames per second."""
SAMPLE_RATE = 16_000
"""Audio samples per second."""
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
"""640 audio samples: frame i shows samples 640 i to 640 (i + 1)."""
FLIP_PROBABILITY = 0.5
"""Probability that an augmented clip is mirrored, as in the reference."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The square that is cut out of each frame of a clip.

    Attributes:
        top: First row kept, 0 to 8.
        left: First column kept, 0 to 8.
        flip: Mirror left and right.
    """

    top: int
    left: int
    flip: bool

    @property
    def square(self) -> tuple[slice, slice]:
        """The rows and columns that are kept."""
        return slice(self.top, self.top + CROP_SIZE), slice(self.left, self.left + CROP_SIZE)

    def apply(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """`(frames, 96, 96)` -> `(frames, 88, 88)`, a view where it can be."""
        cropped = frames[:, *self.square]
        return np.ascontiguousarray(cropped[:, :, ::-1]) if self.flip else cropped


CENTER_CROP = Crop(top=(FRAME_SIZE - CROP_SIZE) // 2, left=(FRAME_SIZE - CROP_SIZE) // 2, flip=False)
"""Four pixels off every side, as in the reference's validation."""


def random_crop(random: np.random.Generator) -> Crop:
    """A crop and flip as the reference draws them for each training clip."""
    top, left = random.integers(FRAME_SIZE - CROP_SIZE + 1, size=2)
    return Crop(top=int(top), left=int(left), flip=bool(random.random() < FLIP_PROBABILITY))


def view_crop(key: str, view: int) -> Crop:
    """The crop of an utterance's augmented view 1, 2, ...; view 0 is the centre crop. It depends on nothing else."""
    if view == 0:
        return CENTER_CROP
    return random_crop(np.random.Generator(np.random.Philox(np.random.SeedSequence([view, *key.encode()]))))


def center_crop(frames: "Tensor") -> "Tensor":
    """`(frames, 96, 96)` -> `(frames, 88, 88)`, four pixels off every side."""
    return frames[..., *CENTER_CROP.square]


def normalise(frames: "Tensor") -> "Tensor":
    """uint8 grey levels -> float32 with LRW's mean 0.421 and standard deviation 0.165, same shape."""
    return (frames / 255.0).sub_(MEAN).div_(STD)
