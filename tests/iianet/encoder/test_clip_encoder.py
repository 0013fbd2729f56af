"""Clips are packed without mixing, and every choice of kernels computes what the published network does."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.reference_golden import published_shapes, published_weights, relative_difference, uniform
from torch import Tensor, nn

from iianet.checkpoint import load_published
from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.fingerprint import weights_fingerprint
from iianet.encoder.kernels import MEMORY_FORMATS, Kernels, default_kernels
from iianet.encoder.mouth import normalise
from iianet.encoder.packing import packed_windows
from iianet.encoder.video_encoder import VideoEncoder

CPU = torch.device("cpu")
EVERY_LAYOUT = [
    replace(default_kernels(CPU), memory_format=layout, max_frames=frames)
    for layout in MEMORY_FORMATS
    for frames in (1, 7, 32)
]


@functools.cache
def network() -> VideoEncoder:
    """The encoder with the weights that the golden embedding was made with."""
    found = VideoEncoder()
    load_published(found, published_weights(published_shapes("encoder")))
    return found


@functools.cache
def encoder(kernels: Kernels = default_kernels(CPU)) -> ClipEncoder:  # noqa: B008 (it is frozen)
    """The same, ready for use."""
    return ClipEncoder(network(), kernels)


def clip(frames: int, seed: int = 0) -> Tensor:
    """uint8 crops, `(frames, 88, 88)`."""
    return ((uniform(seed, (frames, 88, 88)) + 1) * 127.5).to(torch.uint8)


def mixed_lengths(longest: int) -> list[int]:
    """1 to `longest`, each once, shuffled."""
    return np.random.default_rng(0).permutation(np.arange(1, longest + 1)).tolist()


@pytest.mark.parametrize(
    ("lengths", "chunk"),
    [
        pytest.param([1, 2, 300, 1, 3, 65], default_kernels(CPU).max_frames, marks=pytest.mark.slow),
        ([16, 15, 4, 32, 5, 17, 41, 50, 49], 16),
        pytest.param(mixed_lengths(40), 8, marks=pytest.mark.slow),
    ],
    ids=["extremes", "around a chunk", "1 to 40"],
)
def test_packed_clips_come_out_as_if_encoded_alone(lengths: list[int], chunk: int) -> None:
    clips = [clip(frames, seed) for seed, frames in enumerate(lengths)]
    packed = encoder(replace(default_kernels(CPU), max_frames=chunk)).encode(clips)
    assert [tuple(embedding.shape) for embedding in packed] == [(512, frames) for frames in lengths]
    for mouths, embedding in zip(clips, packed, strict=True):
        alone = network()(normalise(mouths)[None, None])[0]
        assert relative_difference(embedding, alone.numpy()) <= 2e-6


@pytest.mark.parametrize("kernels", [default_kernels(CPU), default_kernels(CPU, "bf16"), Kernels(max_frames=16)])
def test_on_a_cpu_a_clip_becomes_the_same_to_the_bit_in_any_pack(kernels: Kernels) -> None:
    clips = [clip(frames, seed) for seed, frames in enumerate((33, 1, 5, 1, 2))]
    packed = encoder(kernels).encode(clips)
    for count in (1, 2):
        for start in range(0, len(clips), count):
            alone = encoder(kernels).encode(clips[start : start + count])
            for one, other in zip(alone, packed[start : start + count], strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("kernels", EVERY_LAYOUT)
def test_all_kernels_give_equal_embeddings(kernels: Kernels) -> None:
    clips = [clip(frames) for frames in (4, 1, 9)]
    for mouths, embedding in zip(clips, encoder(kernels).encode(clips), strict=True):
        expected = network()(normalise(mouths)[None, None])[0]
        assert relative_difference(embedding, expected.numpy()) <= 2e-6


@pytest.mark.parametrize("rows", [50, 1])
def test_with_crop_rows_the_network_sees_the_first_rows_of_each_crop(rows: int) -> None:
    clips = [clip(frames, seed) for seed, frames in enumerate((4, 1, 9))]
    kernels = replace(default_kernels(CPU), max_frames=7)
    packed = ClipEncoder(network(), kernels, rows).encode(clips)
    for mouths, embedding in zip(clips, packed, strict=True):
        expected = network()(normalise(mouths[:, :rows])[None, None])[0]
        assert expected.isfinite().all()
        assert relative_difference(embedding, expected.numpy()) <= 2e-6
        (alone,) = ClipEncoder(network(), kernels, rows).encode([mouths])
        assert torch.equal(embedding, alone)


def test_rows_change_what_becomes_of_a_clip_and_not_the_fingerprint() -> None:
    fifty = ClipEncoder(network(), default_kernels(CPU), 50)
    assert fifty.fingerprint == encoder().fingerprint
    (few,), (whole,) = fifty.encode([clip(3)]), encoder().encode([clip(3)])
    assert relative_difference(few, whole.numpy()) > 1e-2


def test_bfloat16_embeddings_are_float32_and_near() -> None:
    mouths = clip(5)
    (embedding,) = encoder(default_kernels(CPU, "bf16")).encode([mouths])
    expected = network()(normalise(mouths)[None, None])[0]
    assert embedding.dtype == torch.float32
    assert 1e-4 < relative_difference(embedding, expected.numpy()) <= 2e-2


def test_making_it_leaves_the_network_as_it_was() -> None:
    before = {name: value.clone() for name, value in network().state_dict().items()}
    fast = ClipEncoder(network(), default_kernels(CPU, "bf16"))
    after = network().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
    assert fast.fingerprint == weights_fingerprint(network())


def test_it_is_frozen() -> None:
    fast = ClipEncoder(network(), default_kernels(CPU))
    nn.Sequential(fast).train()
    assert not any(module.training for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert not fast.encode([clip(3)])[0].requires_grad


def test_no_clips_are_no_embeddings() -> None:
    assert encoder().encode([]) == []


@pytest.mark.parametrize(
    "kernels", [*EVERY_LAYOUT, default_kernels(CPU, "bf16"), default_kernels(torch.device("cuda"))]
)
def test_kernels_come_back_from_their_record(kernels: Kernels) -> None:
    assert Kernels.from_record(kernels.record()) == kernels


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "float64"),
        ("memory_format", None),
        ("batch_norm", "separate"),
        ("tf32", True),
        ("max_frames", 0),
        ("max_frames", "many"),
    ],
)
def test_kernels_of_another_version_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} .*; expected "):
        Kernels.from_record({**Kernels().record(), name: value})


def test_on_another_type_of_device_only_the_arithmetic_stays() -> None:
    cuda = torch.device("cuda")
    chosen = Kernels(dtype="bfloat16", max_frames=5)
    assert chosen.on(CPU) == chosen
    assert chosen.on(cuda) == replace(default_kernels(cuda), dtype="bfloat16")


@pytest.mark.parametrize("lengths", [[100_000], [3, 50_000, 1, 49_996]])
def test_however_long_a_clip_is_one_window_of_it_is_prepared_at_a_time(lengths: list[int]) -> None:
    frames = torch.arange(100_000, dtype=torch.int32)[:, None, None]
    prepared: list[int] = []

    def prepare(some: Tensor) -> Tensor:
        prepared.append(len(some))
        return some + 1

    windows = list(packed_windows(frames, lengths, context_frames=2, max_frames=32, prepare=prepare))
    assert max(prepared) <= 36 and max(len(window) for window, _ in windows) <= 36
    kept = torch.cat([window[2:][places] for window, places in windows])
    assert torch.equal(kept, frames + 1)


def test_the_encoder_normalises_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = replace(default_kernels(CPU), max_frames=7)
    whole = encoder(kernels).columns(clip(30), [30])
    given: list[int] = []

    def normalise_few(frames: Tensor) -> Tensor:
        given.append(len(frames))
        return normalise(frames)

    monkeypatch.setattr("iianet.encoder.lip_encoder.normalise", normalise_few)
    assert torch.equal(encoder(kernels).columns(clip(30), [30]), whole)
    assert 0 < max(given) <= 7 + 4
