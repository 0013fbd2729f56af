"""Published weights go in and come out bit by bit; anything else is refused by name."""

import fractions
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.reference_golden import SMALL_CONFIG, published_shapes, published_weights, uniform
from torch import Tensor

from iianet.checkpoint import export_published, load_published, read_checkpoint, save_best_model
from iianet.encoder.video_encoder import VideoEncoder
from iianet.errors import WeightsError
from iianet.separator.model import IIANet


def separator() -> tuple[IIANet, dict[str, Tensor]]:
    """A small separator, and weights for it under published names."""
    return IIANet(**SMALL_CONFIG), published_weights(published_shapes("separator_small"))


def encoder() -> tuple[VideoEncoder, dict[str, Tensor]]:
    """An encoder, and weights for it under published names."""
    return VideoEncoder(), published_weights(published_shapes("encoder"))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.mark.parametrize("make", [separator, encoder])
def test_load_and_export_return_every_bit(make: Callable[[], tuple[IIANet | VideoEncoder, dict[str, Tensor]]]) -> None:
    network, weights = make()
    load_published(network, weights)
    assert_same(export_published(network), weights)


def test_full_separator_has_the_published_names_and_shapes() -> None:
    exported = export_published(IIANet())
    assert {name: tuple(value.shape) for name, value in exported.items()} == published_shapes("separator")


def test_exported_tensors_are_copies() -> None:
    network, weights = separator()
    load_published(network, weights)
    export_published(network)["bottleneck.weight"].zero_()
    assert_same(export_published(network), weights)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"model_name": "IIANet", "state_dict": weights, "model_args": {"n_src": 2}, "infos": {}},
        lambda weights: {"epoch": 3, "state_dict": {f"audio_model.{name}": value for name, value in weights.items()}},
        lambda weights: {
            "video_model.trunk.layer1.0.conv1.weight": torch.zeros(1),
            **{f"audio_model.{name}": value for name, value in weights.items()},
        },
    ],
    ids=["plain", "best_model", "lightning", "lightning_state"],
)
def test_separator_reads_every_published_form(wrap: Callable[[dict[str, Tensor]], dict[str, object]]) -> None:
    network, weights = separator()
    load_published(network, wrap(weights))
    assert_same(export_published(network), weights)


def test_encoder_drops_the_temporal_network_of_a_published_file() -> None:
    network, weights = encoder()
    load_published(network, {"epoch_idx": 1, "model_state_dict": {**weights, "tcn.tcn_output.weight": torch.zeros(3)}})
    assert_same(export_published(network), weights)


def test_batch_counters_may_be_absent() -> None:
    network, weights = encoder()
    counters = {name for name in weights if name.endswith("num_batches_tracked")}
    load_published(network, {name: value for name, value in weights.items() if name not in counters})
    exported = export_published(network)
    assert {int(exported[name]) for name in counters} == {0}
    assert_same({**exported, **{name: weights[name] for name in counters}}, weights)


def test_missing_surplus_and_misshapen_tensors_are_all_named() -> None:
    network, weights = separator()
    before = export_published(network)
    del weights["pre_v.weight"]
    weights["sm.extra"] = torch.zeros(2, 3)
    weights["ln.bias"] = torch.zeros(4)
    with pytest.raises(WeightsError) as refusal:
        load_published(network, weights, source="given.pth")
    for words in (
        "given.pth: does not fit IIANet",
        "1 missing (pre_v.weight (8, 512, 3))",
        "1 surplus (sm.extra (2, 3))",
        "1 misshapen (ln.bias found (4,) expected (9,))",
        "audionet_config",
    ):
        assert words in str(refusal.value)
    assert_same(export_published(network), before)


def test_weights_of_another_configuration_are_refused() -> None:
    network, _ = separator()
    with pytest.raises(WeightsError, match=r"IIANet: 47 surplus \(.* and 42 more\); \d+ misshapen \("):
        load_published(network, published_weights(published_shapes("separator")))


def test_values_that_are_no_tensors_are_refused() -> None:
    network, weights = encoder()
    with pytest.raises(WeightsError, match=r"frontend3D\.2\.weight found a float expected \(64,\).*lip-reading"):
        load_published(network, {"model_state_dict": {**weights, "frontend3D.2.weight": 0.25}})


def test_weights_of_the_other_network_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"VideoEncoder: .*missing.*surplus"):
        load_published(VideoEncoder(), separator()[1])


@torch.no_grad()
def test_saved_model_opens_without_allowances_and_estimates_the_same(tmp_path: Path) -> None:
    saved, weights = separator()
    load_published(saved, weights)
    path = tmp_path / "best_model.pth"
    versions = {"torch_version": torch.__version__, "pytorch_lightning_version": "2.6.0"}
    save_best_model(path, saved, versions, {"exp.exp_name": '"a"'})
    assert [entry.name for entry in tmp_path.iterdir()] == ["best_model.pth"]
    contents = torch.load(path, weights_only=True)
    assert contents["model_name"] == "IIANet"
    assert contents["model_args"] == {"n_src": 2}
    versions = contents["infos"]["software_versions"]
    assert versions == {"torch_version": str(torch.__version__), "pytorch_lightning_version": "2.6.0"}
    assert {type(version) for version in versions.values()} == {str}
    assert_same(contents["state_dict"], weights)
    opened = IIANet(**SMALL_CONFIG).eval()
    load_published(opened, read_checkpoint(path))
    mixture, embedding = uniform(1, (1, 500)), uniform(2, (1, 512, 3))
    assert torch.equal(opened(mixture, embedding), saved.eval()(mixture, embedding))


def test_a_published_file_with_torchs_version_type_is_read(tmp_path: Path) -> None:
    path = tmp_path / "best_model.pth"
    torch.save({"infos": {"software_versions": {"torch_version": torch.__version__}}}, path)
    assert read_checkpoint(path) == {"infos": {"software_versions": {"torch_version": torch.__version__}}}


def test_a_file_with_any_other_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {}, "ratio": fractions.Fraction(1, 2)}, path)
    with pytest.raises(WeightsError, match=r"other\.pth: not a weights file.*state dict alone"):
        read_checkpoint(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth: no such weights file"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("content", [b"", b"hello, I am no checkpoint\n", b"<!DOCTYPE html><html></html>"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"page\.pth: .*\({len(content)} bytes.*ownload it again"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": separator()[1]}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match=r"cut\.pth: .*download it again"):
        read_checkpoint(path)


def test_a_file_without_a_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(WeightsError, match=r"list\.pth: holds a list; expected a dict"):
        read_checkpoint(path)
