"""A trained separator is made as its file says; a config that says otherwise is refused by its key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.corpus import Corpus, make_corpus
from helpers.reference_golden import SMALL_CONFIG, published_shapes, published_weights

from iianet.checkpoint import NETWORK, load_published, save_best_model
from iianet.errors import ConfigError, WeightsError
from iianet.inference.trained import open_trained, warn_of_other_level, warn_of_other_rows
from iianet.separator.model import IIANet
from iianet.training.resume import settings_of

SMALL = [f"audionet.audionet_config.{name}={value}" for name, value in SMALL_CONFIG.items()]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus")


def network() -> IIANet:
    model = IIANet(**SMALL_CONFIG)
    load_published(model, published_weights(published_shapes("separator_small")))
    return model.eval()


def best_model(corpus: Corpus, folder: Path) -> Path:
    save_best_model(folder / "best_model.pth", network(), {}, settings_of(corpus.config(*SMALL)))
    return folder / "best_model.pth"


def checkpoint(corpus: Corpus, folder: Path) -> Path:
    state = {f"{NETWORK}{name}": value for name, value in network().state_dict().items()}
    settings = settings_of(corpus.config(*SMALL))
    torch.save({"state_dict": state, "settings": settings, "epoch": 3}, folder / "last.ckpt")
    return folder / "last.ckpt"


def published(corpus: Corpus, folder: Path) -> Path:
    contents: Mapping[str, Any] = {
        "model_name": "IIANet",
        "state_dict": published_weights(published_shapes("separator_small")),
        "model_args": {"n_src": 2},
        "infos": {"software_versions": {"torch_version": torch.torch_version.TorchVersion("2.1.0")}},
    }
    torch.save(contents, folder / "published.pth")
    return folder / "published.pth"


def data_parallel(corpus: Corpus, folder: Path) -> Path:
    weights = published_weights(published_shapes("separator_small"))
    state = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": state, "best_loss": np.float64(-12.5), "epoch": np.int64(3)}, folder / "parallel.pth")
    return folder / "parallel.pth"


@pytest.mark.parametrize("write", [best_model, checkpoint, published, data_parallel])
def test_every_form_gives_the_same_network(corpus: Corpus, tmp_path: Path, write: Any) -> None:
    mixture, embedding = torch.randn(1, 1600), torch.randn(1, SMALL_CONFIG.get("vpre_channels", 512), 3)
    trained = open_trained(write(corpus, tmp_path), corpus.config(*SMALL))
    assert not trained.model.training
    assert torch.equal(trained.model(mixture, embedding), network()(mixture, embedding))
    assert trained.is_of_reference == (write in (published, data_parallel))


@pytest.mark.parametrize("write", [best_model, checkpoint])
def test_our_own_files_need_no_config(corpus: Corpus, tmp_path: Path, write: Any) -> None:
    trained = open_trained(write(corpus, tmp_path))
    assert trained.model.separator.num_blocks == SMALL_CONFIG["num_blocks"]
    assert trained.model.state_dict().keys() == network().state_dict().keys()


def test_a_published_file_without_a_config_iterates_as_published_and_says_so(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert open_trained(published(corpus, tmp_path)).model.separator.num_blocks == 16
    assert "does not say how often its separator iterates; 16 times, as published" in caplog.text


@pytest.mark.parametrize(
    ("write", "change", "said"),
    [
        (best_model, "audionet.audionet_config.num_blocks=7", r"num_blocks=\d, and the config says 7"),
        (checkpoint, "audionet.audionet_config.num_blocks=7", r"--set audionet.audionet_config.num_blocks=\d"),
        (published, "audionet.audionet_config.in_channels=24", r"in_channels=\d+, and the config says 24"),
        (published, "audionet.audionet_config.upsampling_depth=2", r"upsampling_depth=\d, and the config says 2"),
        (checkpoint, "datamodule.data_config.normalize_audio=true", "normalize_audio=false, and the config says true"),
        (checkpoint, "videonet.videonet_config.crop_rows=50", "crop_rows=88, and the config says 50"),
    ],
)
def test_a_config_that_contradicts_the_file_is_refused_by_its_key(
    corpus: Corpus, tmp_path: Path, write: Any, change: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        open_trained(write(corpus, tmp_path), corpus.config(*SMALL, change))


def test_settings_of_another_program_are_no_record(corpus: Corpus, tmp_path: Path) -> None:
    """A part of them that looks like ours would hide that the rest is unknown."""
    contents = torch.load(published(corpus, tmp_path), weights_only=False)
    contents["infos"]["settings"] = {"audionet.audionet_config.num_blocks": "7", "note": "trained at night"}
    torch.save(contents, tmp_path / "other.pth")
    trained = open_trained(tmp_path / "other.pth", corpus.config(*SMALL))
    assert trained.is_of_reference


def test_a_file_of_something_else_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"does not fit IIANet: .* missing .*1 surplus \(layer.weight") as refused:
        open_trained(tmp_path / "other.pth")
    assert "give a separator: a best_model.pth or checkpoint of train.py, or best_model.pth of" in str(refused.value)


def test_a_file_that_is_not_there_says_where_separators_are_published(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such weights file; .*v1\.0\.1 at https://github.com/JusperLee/IIANet/"):
        open_trained(tmp_path / "best_model.pth")


def test_a_separator_of_other_sizes_is_told_apart_from_another_file(corpus: Corpus, tmp_path: Path) -> None:
    other = IIANet(**{**SMALL_CONFIG, "out_channels": 24})
    with pytest.raises(WeightsError, match="build IIANet with the audionet_config of these weights"):
        load_published(other, published_weights(published_shapes("separator_small")))


@pytest.mark.parametrize(("write", "is_told"), [(published, True), (best_model, False)])
def test_a_published_separator_is_told_to_know_other_rows(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture, write: Any, is_told: bool
) -> None:
    trained = open_trained(write(corpus, tmp_path))
    said = "published separators were trained on rows 0 to 49 of the mouths' 88, but the encoder here sees all of them"
    warn_of_other_rows(trained, None)
    assert (said in caplog.text) == is_told


@pytest.mark.parametrize(
    ("rows", "said"), [(50, ""), (88, "sees 88 rows: estimates may be worse than published; give --set")]
)
def test_a_config_decides_which_rows_a_published_separator_sees(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: int, said: str
) -> None:
    config = corpus.config(*SMALL, f"videonet.videonet_config.crop_rows={rows}")
    warn_of_other_rows(open_trained(published(corpus, tmp_path), config), config)
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


@pytest.mark.parametrize(("loss", "is_told"), [("pairwise_neg_snr", False), ("pairwise_neg_sisdr", True)])
def test_a_loss_that_leaves_the_level_open_is_told(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture, loss: str, is_told: bool
) -> None:
    settings = settings_of(corpus.config(*SMALL, f"loss.train.sdr_type={loss}"))
    save_best_model(tmp_path / "best_model.pth", network(), {}, settings)
    warn_of_other_level(open_trained(tmp_path / "best_model.pth"))
    assert ("leaves the level of estimates open" in caplog.text) == is_told
