"""A small published encoder in place of IIANet's: builds, training, inspection, and what is refused."""

from pathlib import Path

import pytest
import torch
from helpers.builds import opened
from helpers.commands import run_main
from helpers.corpus import Corpus
from helpers.runs import build_store, losses, run

from iianet.checkpoint import export_published
from iianet.encoder.fingerprint import weights_fingerprint
from iianet.encoder.registry import ENCODERS
from iianet.encoder.shuffle_encoder import HalfShuffleEncoder
from iianet.errors import StoreError
from shardwriter.inspect_cli import main as inspect

NAME, CHANNELS = "videonet.videonet_name", "audionet.audionet_config.vpre_channels"


def words(name: str) -> tuple[str, str]:
    """Settings of an encoder."""
    return f"{NAME}={name}", f"{CHANNELS}={ENCODERS[name].dim}"


@pytest.mark.slow
def test_a_weights_file_of_it_serves_builds_raw_mouths_the_fallback_and_inspection(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = HalfShuffleEncoder.load_network(None, seed=3)
    weights = {**export_published(network, HalfShuffleEncoder.form), "tcn_output.weight": torch.zeros(500, 4)}
    torch.save({"model_state_dict": weights}, here / "snv05x.pth.tar")
    settings = (*words("ShuffleNetV2_05x"), f"videonet.videonet_config.pretrain={here / 'snv05x.pth.tar'}")
    still = ("--set", "datamodule.data_config.augment_mouth=false", *settings)
    assert run(corpus, *still)[0] == 0
    raw = losses()
    for limit in (4, None):
        store = build_store(corpus, f"small-{limit}", limit, *settings)
        assert run(corpus, "--shards", store, *still)[0] == 0
        assert losses() == [pytest.approx(row, rel=1e-4) for row in raw]
    identity = opened(store).identity
    assert (identity.dim, identity.fps) == (1024, 25)
    assert (identity.encoder["name"], identity.encoder["pretrain"]) == ("ShuffleNetV2_05x", "snv05x.pth.tar")
    assert identity.encoder["fingerprint"] == weights_fingerprint(network)
    checked = run_main(inspect, [store, "--against", corpus.config_file, "--recheck", "3", "--set", *settings], capsys)
    assert checked.code == 0, checked.err


def test_a_separator_of_other_channels_is_refused_with_the_cure(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--set", f"{NAME}=ShuffleNetV2_1x")[0] == 2
    said = capsys.readouterr().err
    assert f"{CHANNELS}: found 512, expected 1024" in said and "set vpre_channels: 1024" in said


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ("ResNetVideoModel", "ShuffleNetV2_1x"),
        ("ShuffleNetV2_1x", "ResNetVideoModel"),
        ("ShuffleNetV2_1x", "ShuffleNetV2_05x"),  # of equal rows
    ],
)
def test_a_store_of_another_encoder_is_refused_with_both_names(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str], made: str, asked: str
) -> None:
    store = build_store(corpus, f"of-{made}-for-{asked}", 1, *words(made))
    capsys.readouterr()
    assert run(corpus, "--shards", store, "--set", *words(asked))[0] == 2
    said = capsys.readouterr().err
    assert "was made with another identity (encoder fingerprint: " in said
    assert f'"name": "{asked}"' in said and f'"name": "{made}"' in said
    dims = ENCODERS[asked].dim, ENCODERS[made].dim
    assert (f"dim: {dims[0]} here, {dims[1]} there" in said) is (dims[0] != dims[1])
    with pytest.raises(StoreError, match="encoder fingerprint: "):
        build_store(corpus, store.name, 1, *words(asked))
