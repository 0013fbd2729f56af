"""Crop and normalise mouth frames: the one preprocessing, used by the build, by raw mode and by the fallback.

Source: `get_preprocessing_pipelines` of the reference (JusperLee/IIANet): scale to 0..1, crop 88 x 88, subtract the
mean and divide by the standard deviation of LRW mouths. Cropping commutes with both, so it is done first, on uint8.
"""

from torch import Tensor

FRAME_SIZE = 96
"""Height and width of stored mouth frames, pixels."""
CROP_SIZE = 88
"""Height and width of the crop that the encoder sees, pixels."""
MEAN = 0.421
STD = 0.165
FPS = 25
"""Mouth frames per second."""


def crop(frames: Tensor, top: int, left: int, flip: bool = False) -> Tensor:
    """Cut the encoder's square out of mouth frames.

    Args:
        frames: Mouth frames, `(frames, 96, 96)`, any dtype.
        top: First row kept, 0 to 8.
        left: First column kept, 0 to 8.
        flip: Mirror left and right, as the reference does for half of its training clips.

    Returns:
        `(frames, 88, 88)`, a view where it can be.
    """
    cropped = frames[..., top : top + CROP_SIZE, left : left + CROP_SIZE]
    return cropped.flip(-1) if flip else cropped


def center_crop(frames: Tensor) -> Tensor:
    """`(frames, 96, 96)` -> `(frames, 88, 88)`, four pixels off every side."""
    margin = (FRAME_SIZE - CROP_SIZE) // 2
    return crop(frames, margin, margin)


def normalise(frames: Tensor) -> Tensor:
    """uint8 grey levels -> float32 with LRW's mean 0.421 and standard deviation 0.165, same shape."""
    return (frames / 255.0).sub_(MEAN).div_(STD)
