"""The lip encoder computes what the published one does, packs clips without mixing them, and stays frozen."""

import functools

import numpy as np
import pytest
import torch
from reference_golden import load_golden, published_shapes, published_weights, relative_difference, uniform
from torch import Tensor, nn

from iianet.checkpoint import load_published
from iianet.mouth import normalise
from iianet.video_encoder import VideoEncoder


@functools.cache
def filled(max_frames: int = 64) -> VideoEncoder:
    """The encoder with the weights that the golden embedding was made with."""
    encoder = VideoEncoder(max_frames=max_frames)
    load_published(encoder, published_weights(published_shapes("encoder")))
    return encoder


def clip(frames: int, seed: int = 0) -> Tensor:
    """uint8 crops, `(frames, 88, 88)`."""
    return ((uniform(seed, (frames, 88, 88)) + 1) * 127.5).to(torch.uint8)


def test_embedding_equals_that_of_the_reference() -> None:
    embedding = filled()(3 * uniform(3, (2, 1, 9, 88, 88)))
    assert embedding.shape == (2, 512, 9)
    assert relative_difference(embedding, load_golden("encoder")["embedding"]) <= 1e-5


def mixed_lengths(count: int) -> list[int]:
    """1 to 300, each once, shuffled: of them the first `count`."""
    return [int(length) for length in np.random.default_rng(0).permutation(np.arange(1, 301))[:count]]


@pytest.mark.parametrize(
    "lengths",
    [
        [1, 2, 300, 1, 3, 65],
        [64, 63, 4, 128, 5, 17, 41, 50, 49],
        pytest.param(mixed_lengths(60), marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
    ids=["extremes", "around a chunk", "60 of 1 to 300"],
)
def test_packed_clips_come_out_as_if_encoded_alone(lengths: list[int]) -> None:
    clips = [clip(frames, seed) for seed, frames in enumerate(lengths)]
    packed = filled().encode(clips)
    assert [tuple(embedding.shape) for embedding in packed] == [(512, frames) for frames in lengths]
    for mouths, embedding in zip(clips, packed, strict=True):
        alone = filled()(normalise(mouths)[None, None])[0]
        assert relative_difference(embedding, alone.numpy()) <= 1e-6


@pytest.mark.parametrize("max_frames", [1, 7])
def test_frames_encoded_at_a_time_do_not_show(max_frames: int) -> None:
    clips = [clip(frames) for frames in (4, 1, 9)]
    for found, expected in zip(filled(max_frames).encode(clips), filled().encode(clips), strict=True):
        assert relative_difference(found, expected.numpy()) <= 1e-6


def test_train_leaves_it_in_eval_mode() -> None:
    encoder = VideoEncoder()
    nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())


def test_statistics_do_not_drift_and_no_gradients_flow() -> None:
    encoder = VideoEncoder().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    mouths = uniform(1, (1, 1, 3, 88, 88)).requires_grad_()
    assert not encoder(mouths).requires_grad
    assert not encoder.encode([clip(3)])[0].requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_fingerprint_tells_weights_apart_and_nothing_else() -> None:
    first, same, other = VideoEncoder(), VideoEncoder(max_frames=3), VideoEncoder()
    for encoder, seed in ((first, 0), (same, 0), (other, 1)):
        encoder.init_weights(seed)
    same.front_end[1].num_batches_tracked += 5
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()
    same.front_end[1].running_var += 1
    assert first.fingerprint() != same.fingerprint()
