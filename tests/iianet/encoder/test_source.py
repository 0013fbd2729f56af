"""Where an encoder comes from: what a config says of it, what is refused, and that it reaches other processes."""

import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_encoder import TinyEncoder

from iianet.config.schema import Config, load_config
from iianet.encoder.kernels import Kernels, default_kernels
from iianet.encoder.registry import ENCODERS, encoder_class
from iianet.encoder.source import EncoderSource
from iianet.errors import ConfigError, WeightsError
from iianet.wording import either

CPU = torch.device("cpu")
TINY = ("videonet.videonet_name=TinyEncoder", "audionet.audionet_config.vpre_channels=8")


def load(folder: Path, *overrides: str) -> Config:
    path = folder / "x.yml"
    path.write_text("datamodule: {data_config: {train_dir: tr, valid_dir: cv, test_dir: tt}}\nexp: {exp_name: x}\n")
    return load_config(path, overrides)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, TinyEncoder.name, TinyEncoder)


def test_unknown_encoder_names_the_known_ones_and_the_nearest(tiny: None, tmp_path: Path) -> None:
    known = either(sorted(ENCODERS))
    assert "ResNetVideoModel" in known and "TinyEncoder" in known
    problem = f"found 'TinyEncodr' \\(str\\), expected {known}; did you mean TinyEncoder\\?"
    with pytest.raises(ConfigError, match=f"^videonet.videonet_name: {problem}$"):
        encoder_class("TinyEncodr")
    with pytest.raises(ConfigError, match=rf"x\.yml: videonet\.videonet_name: {problem} \(override "):
        load(tmp_path, "videonet.videonet_name=TinyEncodr")


def test_encoder_that_only_another_process_knows_is_a_config_error(tiny: None, tmp_path: Path) -> None:
    config = load(tmp_path, *TINY)
    del ENCODERS[TinyEncoder.name]
    with pytest.raises(ConfigError, match=r"found 'TinyEncoder' .*expected ResNetVideoModel"):
        config.encoder_source()


def test_separator_that_takes_other_embeddings_is_refused_with_the_cure(tiny: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vpre_channels: found 512, expected 8: .*TinyEncoder.*set vpre_channels: 8"):
        load(tmp_path, TINY[0])


def test_segment_counts_the_frames_of_the_encoder(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = "datamodule.data_config.segment=0.02"
    with pytest.raises(ConfigError, match=r"found 0\.02, which is 0\.5 mouth frames at 25 a second"):
        load(tmp_path, *TINY, segment)
    monkeypatch.setattr(TinyEncoder, "fps", 50)
    config = load(tmp_path, *TINY, segment)
    assert config.encoder_source().samples_per_frame == 320


def test_rows_of_the_crop_are_part_of_the_preprocessing_where_not_all_are_seen(tmp_path: Path) -> None:
    whole = load(tmp_path).encoder_source()
    assert whole.crop_rows == 88
    assert whole.preprocessing == {
        "frame_size": 96,
        "crop": "center",
        "crop_size": 88,
        "mean": 0.421,
        "std": 0.165,
    }  # what stores of earlier versions hold
    few = load(tmp_path, "videonet.videonet_config.crop_rows=50").encoder_source()
    assert few.preprocessing == {**whole.preprocessing, "crop_rows": 50}
    encoder = few.load(CPU)
    assert (encoder.crop_rows, encoder.fingerprint) == (50, whole.load(CPU).fingerprint)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0", "found 0 .*expected a number above 0"),
        ("89", "found 89 .*expected a number not above 88"),
        ("50.0", r"found 50\.0 .*expected an integer"),
    ],
)
def test_rows_that_a_crop_does_not_have_are_refused(tmp_path: Path, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"videonet\.videonet_config\.crop_rows: {said}"):
        load(tmp_path, f"videonet.videonet_config.crop_rows={value}")


def test_encoder_that_needs_the_whole_crop_says_so(tiny: None, tmp_path: Path) -> None:
    said = "found 50, expected 88: with fewer rows .* TinyEncoder cannot work; set crop_rows: 88 for the whole crop"
    with pytest.raises(ConfigError, match=rf"videonet\.videonet_config\.crop_rows: {said}"):
        load(tmp_path, *TINY, "videonet.videonet_config.crop_rows=50")


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_kernels_are_the_device_s_default_until_the_config_says_otherwise(tmp_path: Path, device: str) -> None:
    place = torch.device(device)
    assert load(tmp_path).encoder_source().kernels(place) == default_kernels(place)
    keys = ("precision=bf16", "memory_format=contiguous", "max_frames=9")
    chosen = load(tmp_path, *(f"videonet.videonet_config.{key}" for key in keys)).encoder_source()
    assert chosen.kernels(place) == Kernels(device=device, dtype="bfloat16", memory_format="contiguous", max_frames=9)
    one = load(tmp_path, "videonet.videonet_config.max_frames=9").encoder_source()
    assert one.kernels(place) == replace(default_kernels(place), max_frames=9)


def test_loaded_encoder_has_the_kernels_of_its_source_or_those_that_are_given(tiny: None) -> None:
    source = EncoderSource(None, 0, name="TinyEncoder", max_frames=9)
    assert source.load(CPU).kernels == source.kernels(CPU) != default_kernels(CPU)
    assert source.load(CPU, Kernels(max_frames=5)).kernels == Kernels(max_frames=5)


def test_missing_weights_say_where_the_encoder_s_own_are_published(tmp_path: Path) -> None:
    config = load(tmp_path, "videonet.videonet_config.pretrain=absent.pth")
    with pytest.raises(WeightsError, match=r"absent\.pth: no such weights file .*lrw_resnet18_mstcn_adamw_s3"):
        config.encoder_source()


def test_store_was_made_by_the_same_name_and_origin(tmp_path: Path) -> None:
    weights, copy, other = (tmp_path / name for name in ("weights.pth", "copy.pth", "other.pth"))
    for path, content in ((weights, b"1"), (copy, b"1"), (other, b"2")):
        path.write_bytes(content)
    random, file = EncoderSource(None, 3), EncoderSource(weights, 3)
    assert random.made(random.facts("0a"))
    assert not replace(random, seed=4).made(random.facts("0a"))
    assert not replace(random, name="TinyEncoder").made(random.facts("0a"))
    assert not random.made(file.facts("0a"))
    assert EncoderSource(copy, 0).made(file.facts("0a"))
    assert not EncoderSource(other, 3).made(file.facts("0a"))
    assert not file.made(random.facts("0a"))
    assert not file.made({"name": "ResNetVideoModel", "imported": True, "fingerprint": None})


def test_source_and_config_reach_started_processes(tmp_path: Path) -> None:
    config = load(tmp_path, "videonet.videonet_config.seed=3")
    source = config.encoder_source()
    assert pickle.loads(pickle.dumps(source)) == source
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_describe, (source, config))
    assert there == _describe(source, config)


def _describe(source: EncoderSource, config: Config) -> tuple[str, int, str, bool]:
    return source.name, source.dim, source.load(CPU).fingerprint, config.encoder_source() == source
