"""The ShuffleNet V2 encoders compute what the published networks do, from files of their names, in any pack."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.reference_golden import published_shapes, published_weights, relative_difference, uniform
from torch import Tensor
from torch.nn import functional

from iianet.checkpoint import export_published
from iianet.encoder.kernels import Kernels, default_kernels
from iianet.encoder.mouth import normalise
from iianet.encoder.shuffle_encoder import HalfShuffleEncoder, ShuffleEncoder
from iianet.errors import WeightsError

CPU = torch.device("cpu")
KINDS: tuple[type[ShuffleEncoder], ...] = (ShuffleEncoder, HalfShuffleEncoder)
EVERY = pytest.mark.parametrize("kind", KINDS)
CHANNELS = {ShuffleEncoder: (116, 232, 464), HalfShuffleEncoder: (48, 96, 192)}


def file_shapes(kind: type[ShuffleEncoder]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a published file, as the code of its repository makes them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(convolution: str, norm: str, *shape: int) -> None:
        shapes[f"{convolution}.weight"] = shape
        shapes.update({f"{norm}.{name}": shape[:1] for name in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{norm}.num_batches_tracked"] = ()

    add("frontend3D.0", "frontend3D.1", 24, 1, 5, 7, 7)
    shapes["frontend3D.2.weight"] = (24,)
    before, block = 24, 0
    for channels, count in zip(CHANNELS[kind], (4, 8, 4), strict=True):
        half = channels // 2
        for number in range(count):
            skip, branch = f"trunk.0.{block}.banch1", f"trunk.0.{block}.banch2"
            if number == 0:
                add(f"{skip}.0", f"{skip}.1", before, 1, 3, 3)
                add(f"{skip}.2", f"{skip}.3", half, before, 1, 1)
            add(f"{branch}.0", f"{branch}.1", half, before if number == 0 else half, 1, 1)
            add(f"{branch}.3", f"{branch}.4", half, 1, 3, 3)
            add(f"{branch}.5", f"{branch}.6", half, half, 1, 1)
            block += 1
        before = channels
    add("trunk.1.0", "trunk.1.1", 1024, before, 1, 1)
    return shapes


@functools.cache
def weights(kind: type[ShuffleEncoder]) -> dict[str, Tensor]:
    """Weights under published names."""
    return published_weights(file_shapes(kind))


def write_file(folder: Path, kind: type[ShuffleEncoder]) -> Path:
    """A file as the repository's training writes it, with a temporal network."""
    path = folder / "lrw_snv.pth.tar"
    temporal = {"tcn.tcn_trunk.network.0.weight": torch.zeros(3), "tcn_output.weight": torch.zeros(500, 3)}
    torch.save({"epoch_idx": 80, "model_state_dict": {**weights(kind), **temporal}, "optimizer_state_dict": {}}, path)
    return path


def reference(found: Mapping[str, Tensor], mouths: Tensor) -> Tensor:
    """What the published network gives, by functions and published names: `(frames, rows, 88)` -> `(1024, frames)`."""

    def normed(x: Tensor, norm: str) -> Tensor:
        statistics = (found[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *statistics)

    def pointwise(x: Tensor, name: str, number: int) -> Tensor:
        x = functional.conv2d(x, found[f"{name}.{number}.weight"])
        return normed(x, f"{name}.{number + 1}").relu()

    def depthwise(x: Tensor, name: str, number: int, stride: int) -> Tensor:
        weight = found[f"{name}.{number}.weight"]
        return normed(
            functional.conv2d(x, weight, stride=stride, padding=1, groups=len(weight)), f"{name}.{number + 1}"
        )

    x = functional.conv3d(mouths[None, None], found["frontend3D.0.weight"], stride=(1, 2, 2), padding=(2, 3, 3))
    x = functional.prelu(normed(x, "frontend3D.1"), found["frontend3D.2.weight"])
    x = functional.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))[0].transpose(0, 1)
    for block in range(16):
        skip, branch = f"trunk.0.{block}.banch1", f"trunk.0.{block}.banch2"
        stride = 2 if f"{skip}.0.weight" in found else 1
        half = x.shape[1] // 2
        left = pointwise(depthwise(x, skip, 0, 2), skip, 2) if stride == 2 else x[:, :half]
        right = pointwise(x if stride == 2 else x[:, half:], branch, 0)
        right = pointwise(depthwise(right, branch, 3, stride), branch, 5)
        both = torch.cat((left, right), dim=1)
        x = both.view(len(both), 2, -1, *both.shape[2:]).transpose(1, 2).reshape(both.shape)
    return functional.avg_pool2d(pointwise(x, "trunk.1", 0), 3).flatten(1).t()


def clip(frames: int, seed: int = 0) -> Tensor:
    """uint8 crops, `(frames, 88, 88)`."""
    return ((uniform(seed, (frames, 88, 88)) + 1) * 127.5).to(torch.uint8)


@EVERY
@pytest.mark.parametrize("rows", [88, 65])
@pytest.mark.parametrize("kernels", [default_kernels(CPU), Kernels(max_frames=3)])
def test_embeddings_equal_those_of_the_published_layers(
    kind: type[ShuffleEncoder], rows: int, kernels: Kernels, tmp_path: Path
) -> None:
    encoder = kind.load(write_file(tmp_path, kind), 0, kernels, rows)
    clips = [clip(frames, seed) for seed, frames in enumerate((4, 1, 20))]
    for mouths, embedding in zip(clips, encoder.encode(clips), strict=True):
        expected = reference(weights(kind), normalise(mouths[:, :rows]))
        assert embedding.shape == expected.shape == (1024, len(mouths))
        assert relative_difference(embedding, expected.numpy()) <= 3e-6


@EVERY
def test_the_network_has_the_published_tensors_and_count(kind: type[ShuffleEncoder], tmp_path: Path) -> None:
    network = kind.load_network(write_file(tmp_path, kind), 0)
    exported = export_published(network, kind.form)
    assert {name: tuple(value.shape) for name, value in exported.items()} == file_shapes(kind)
    assert [name for name, value in weights(kind).items() if not torch.equal(exported[name], value)] == []
    # What torchvision documents for shufflenet_v2_x1_0 and shufflenet_v2_x0_5, without its first convolution and
    # classifier, and with the front end.
    whole = {ShuffleEncoder: 2_278_604, HalfShuffleEncoder: 1_366_792}[kind]
    first, classifier, front = 24 * 3 * 9 + 2 * 24, 1025 * 1000, 24 * 5 * 7 * 7 + 3 * 24
    assert sum(parameter.numel() for parameter in network.parameters()) == whole - first - classifier + front


@EVERY
def test_a_file_of_another_network_is_refused_with_what_does_not_fit(
    kind: type[ShuffleEncoder], tmp_path: Path
) -> None:
    path = tmp_path / "other.pth.tar"
    for other in (
        weights(next(each for each in KINDS if each is not kind)),
        published_weights(published_shapes("encoder")),
    ):
        torch.save({"model_state_dict": other}, path)
        with pytest.raises(WeightsError) as refused:
            kind.load(path, 0, default_kernels(CPU))
        assert "other.pth.tar: does not fit ShuffleNet: " in str(refused.value)
        assert "misshapen" in str(refused.value) and "videonet.videonet_name" in str(refused.value)


@EVERY
def test_missing_weights_name_the_models_of_its_width(kind: type[ShuffleEncoder]) -> None:
    prefix = {ShuffleEncoder: "snv1x_", HalfShuffleEncoder: "snv05x_"}[kind]
    assert prefix in kind.published and ("snv05x_" in kind.published) is (kind is HalfShuffleEncoder)


@EVERY
@pytest.mark.parametrize("kernels", [default_kernels(CPU), default_kernels(CPU, "bf16"), Kernels(max_frames=17)])
def test_on_a_cpu_a_clip_becomes_the_same_to_the_bit_in_any_pack(kind: type[ShuffleEncoder], kernels: Kernels) -> None:
    encoder = kind.load(None, 0, kernels)
    clips = [clip(frames, seed) for seed, frames in enumerate((5, 1, 40, 1, 2))]  # some share a call with many
    packed = encoder.encode(clips)
    for count in (1, 2):
        for start in range(0, len(clips), count):
            alone = encoder.encode(clips[start : start + count])
            for one, other in zip(alone, packed[start : start + count], strict=True):
                assert torch.equal(one, other)


@EVERY
def test_random_weights_give_embeddings_that_float16_holds_and_that_tell_frames_apart(
    kind: type[ShuffleEncoder],
) -> None:
    (embedding,) = kind.load(None, 0, default_kernels(CPU)).encode([clip(4)])
    assert 0.1 < embedding.abs().mean() < embedding.abs().max() < 100
    assert embedding.std(dim=1).mean() > 0.01


def test_the_widths_are_two_encoders() -> None:
    one, half = (kind.load(None, 0, replace(default_kernels(CPU))) for kind in KINDS)
    assert one.fingerprint != half.fingerprint and one.name != half.name
    assert one.dim == half.dim == 1024
