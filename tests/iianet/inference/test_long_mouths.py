"""A long mouth is encoded in pieces as if it were whole, and one of another length than the mixture is refused."""

import numpy as np
import pytest
import torch
from helpers.tiny_encoder import TinyEncoder

from iianet.encoder.kernels import default_kernels
from iianet.encoder.mouth import CROP_SIZE
from iianet.encoder.protocol import Encoder
from iianet.encoder.registry import encoder_class
from iianet.errors import MouthError
from iianet.inference import long_mouths
from iianet.inference.long_mouths import encode_long, refuse_other_length

CPU = torch.device("cpu")


@pytest.mark.parametrize("make", [TinyEncoder, encoder_class("ResNetVideoModel")], ids=lambda make: make.name)
@pytest.mark.parametrize("frames", [1, 15, 16, 17, 18, 33])
def test_pieces_give_the_columns_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, make: type[Encoder], frames: int
) -> None:
    monkeypatch.setattr(long_mouths, "PIECE", 16)
    encoder = make.load(None, 0, default_kernels(CPU), CROP_SIZE)
    mouth = np.random.default_rng(0).integers(0, 256, (frames, 96, 96), dtype=np.uint8)[:, 4:92, 4:92]  # a view
    done: list[int] = []
    found = encode_long(encoder, mouth, CPU, done.append)
    (whole,) = encoder.encode([torch.from_numpy(mouth.copy())])
    assert torch.equal(found, whole)
    assert sum(done) == frames and max(done) <= 16


def said(frames: int, num_samples: int, tolerance: int = 1) -> str:
    """What is said of a mouth; nothing where it is accepted."""
    try:
        refuse_other_length("a.npz", frames, num_samples, 640, tolerance)
    except MouthError as error:
        return str(error)
    return ""


def test_a_frame_more_or_less_is_accepted_and_two_are_not() -> None:
    assert [frames for frames in range(40, 60) if not said(frames, 50 * 640)] == [49, 50, 51]
    assert [frames for frames in range(40, 60) if not said(frames, 50 * 640 + 1)] == [49, 50, 51, 52]  # a frame begins
    assert [frames for frames in range(40, 60) if not said(frames, 50 * 640, tolerance=3)] == list(range(47, 54))


def test_the_message_says_both_lengths_and_the_cure() -> None:
    assert "has 45 frames, 1.80 s at 25 a second, and the mixture has 2.00 s; give the mouth of this" in said(45, 32000)
    assert "--frame_tolerance 2" in said(48, 32000) and "--frame_tolerance 2" in said(52, 32000)
    assert not said(48, 32000, tolerance=2) and not said(52, 32000, tolerance=2)


@pytest.mark.parametrize("rate", [24, 30, 50, 60])
def test_another_frame_rate_is_named(rate: int) -> None:
    assert f"perhaps it has {rate} frames a second: convert its video to 25" in said(10 * rate, 160_000)
    assert "perhaps" not in said(100, 160_000)
