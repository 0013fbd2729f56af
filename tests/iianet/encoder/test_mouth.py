"""Crops of mouth frames: that of each augmented view follows from its key and number alone."""

from collections import Counter

import numpy as np
import pytest
import torch

from iianet.encoder.mouth import CENTER_CROP, Crop, center_crop, view_crop

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 96, 96), dtype=np.uint8)

GOLDEN = {
    ("spk00_u0", 1): Crop(top=5, left=4, flip=True),
    ("spk00_u0", 2): Crop(top=3, left=6, flip=False),
    ("6330311066473698535_00011", 1): Crop(top=6, left=2, flip=True),
    ("50%25", 3): Crop(top=7, left=0, flip=False),
}
"""Stored views were made with these: whoever changes them makes old stores and the fallback disagree."""


@pytest.mark.parametrize(("key", "view"), GOLDEN)
def test_view_s_crop_never_changes(key: str, view: int) -> None:
    assert view_crop(key, view) == GOLDEN[key, view]


def test_view_0_is_the_centre_crop() -> None:
    assert view_crop("any", 0) == CENTER_CROP
    np.testing.assert_array_equal(CENTER_CROP.apply(FRAMES), center_crop(torch.from_numpy(FRAMES)).numpy())
    np.testing.assert_array_equal(CENTER_CROP.apply(FRAMES), FRAMES[:, 4:92, 4:92])


def test_flip_mirrors_what_is_cropped() -> None:
    plain, flipped = (Crop(top=1, left=7, flip=flip).apply(FRAMES) for flip in (False, True))
    np.testing.assert_array_equal(plain, FRAMES[:, 1:89, 7:95])
    np.testing.assert_array_equal(flipped, plain[:, :, ::-1])


def test_crops_of_many_utterances_are_spread_as_the_reference_draws_them() -> None:
    count = 3240
    crops = [view_crop(f"utterance_{number}", 1) for number in range(count)]
    for edge in ("top", "left"):
        found = Counter(getattr(crop, edge) for crop in crops)
        assert set(found) == set(range(9))
        assert max(abs(number - count / 9) for number in found.values()) < 5 * (count / 9) ** 0.5
    assert abs(sum(crop.flip for crop in crops) - count / 2) < 5 * (count / 4) ** 0.5
    assert len({(crop.top, crop.left, crop.flip) for crop in crops}) == 9 * 9 * 2


def test_views_of_one_utterance_differ() -> None:
    assert len({(crop.top, crop.left, crop.flip) for crop in (view_crop("one", view) for view in range(1, 41))}) > 25
