"""The config that a run leaves for the reference: its keys alone, the run's values, and in words what it cannot say."""

from pathlib import Path

import pytest
import yaml
from helpers.corpus import make_corpus

from iianet.config.key_paths import flattened
from iianet.config.published import published_configs
from iianet.config.reference import reference_config
from iianet.config.schema import Config, load_config

NETWORK = "audionet.audionet_config"
DATA = "datamodule.data_config"
KEYS = {
    "audionet.audionet_name",
    *(f"{NETWORK}.{key}" for key in ("out_channels", "in_channels", "vpre_channels", "vin_channels", "vout_channels")),
    *(f"{NETWORK}.{key}" for key in ("num_blocks", "upsampling_depth", "enc_kernel_size", "num_sources")),
    "videonet.videonet_name",
    "videonet.videonet_config.pretrain",
    *(f"loss.{stage}.{key}" for stage in ("train", "val") for key in ("loss_func", "sdr_type")),
    *(f"loss.{stage}.config.{key}" for stage in ("train", "val") for key in ("pit_from", "threshold_byloss")),
    *(f"training.{key}" for key in ("system", "gpus", "parallel", "epochs")),
    *(f"training.early_stop.{key}" for key in ("monitor", "mode", "patience", "verbose")),
    *(f"optimizer.{key}" for key in ("optim_name", "lr", "weight_decay")),
    "scheduler.sche_name",
    *(f"scheduler.sche_config.{key}" for key in ("patience", "factor")),
    "datamodule.data_name",
    *(f"{DATA}.{key}" for key in ("train_dir", "valid_dir", "test_dir", "n_src", "sample_rate", "segment")),
    *(f"{DATA}.{key}" for key in ("normalize_audio", "batch_size", "num_workers", "pin_memory", "persistent_workers")),
    "exp.exp_name",
}
"""All keys of the reference's configs/LRS2-IIANet.yml, which are those of its two others."""


def opened(config: Config) -> tuple[dict[str, object], list[str]]:
    """The values of a run's config for the reference, by dotted key, and its comments."""
    text = reference_config(config)
    assert text is not None
    comments = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    values = yaml.safe_load(text)
    assert values.pop("main_args") == {}, "test.py puts something in there"
    return flattened(values), comments


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus").config_file


@pytest.mark.parametrize("name", published_configs())
def test_a_published_config_is_the_published_one_again(name: str) -> None:
    values, _ = opened(load_config(name))
    published = flattened(yaml.safe_load(published_configs()[name].read_text()))
    assert values.keys() == KEYS
    assert values == {key: published[key] for key in KEYS}


def test_our_own_keys_are_left_out_whatever_they_say(own: Path) -> None:
    ours = (
        "training.test_every_n_epochs=3",
        "videonet.videonet_config.max_frames=9",
        "datamodule.data_config.shards=st",
        "training.precision=bf16-mixed",
        "datamodule.data_config.views=2",
    )
    assert opened(load_config(own, ours)) == opened(load_config(own))
    values, _ = opened(load_config(own, ["training.early_stop=null", "scheduler.sche_name=null"]))
    assert values["training.early_stop"] is None and values["scheduler.sche_name"] is None


@pytest.mark.parametrize(
    ("setting", "key", "value", "said"),
    [
        ("training.gpus=null", "training.gpus", [0], "training.gpus is null here, and it needs a GPU"),
        ("training.gpus=0", "training.gpus", [0], "training.gpus is 0 here, and it needs a GPU"),
        ("training.gpus=2", "training.gpus", 2, None),
        (
            f"{DATA}.test_dir=[A/tt, B/tt]",
            f"{DATA}.test_dir",
            "A/tt",
            "test_dir is [A/tt, B/tt] here, and it takes",
        ),
        (f"{DATA}.data_root=/some/where", f"{DATA}.n_src", 1, "The paths in the lists start at /some/where"),
        ("videonet.videonet_config.pretrain=null", "videonet.videonet_config.pretrain", None, "other random weights"),
        ("videonet.videonet_config.pretrain=a.pth", "videonet.videonet_config.pretrain", "a.pth", None),
        (f"{DATA}.train_mixing=static", "datamodule.data_name", "AVSpeechDataModule", None),
        ("datamodule.data_name=AVSpeechDynamicDataModule", "datamodule.data_name", "AVSpeechDyanmicDataModule", None),
    ],
)
def test_what_has_no_meaning_there_becomes_the_nearest_and_is_said(
    own: Path, setting: str, key: str, value: object, said: str | None
) -> None:
    quiet = ("training.gpus=[0]", f"{DATA}.data_root=null", "videonet.videonet_config.pretrain=w.pth")
    values, comments = opened(load_config(own, [*quiet, setting]))
    head = len(opened(load_config(own, quiet))[1])
    assert values[key] == value
    assert len(comments) == head + (said is not None)
    assert said is None or said in comments[-1]


def test_a_name_that_holds_a_line_end_stays_within_its_comment(own: Path) -> None:
    setting = f"{DATA}.data_root=" + '"/some\\nexp: {exp_name: other}"'
    values, _ = opened(load_config(own, [setting]))
    assert values["exp.exp_name"] == "tiny"


def test_another_encoder_is_none_that_the_reference_has(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(own)
    videonet = config.videonet.model_copy(update={"videonet_name": "TinyEncoder"})
    assert reference_config(config.model_copy(update={"videonet": videonet})) is None
