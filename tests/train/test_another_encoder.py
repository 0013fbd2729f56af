"""An encoder of the registry, with other rows than the published one, serves builds, training and inspection."""

from pathlib import Path

import pytest
from helpers.builds import opened, tar
from helpers.corpus import Corpus
from helpers.runs import build_store, losses, run
from helpers.tiny_encoder import TinyEncoder

from iianet.encoder.registry import ENCODERS
from shardwriter.inspect_cli import main as inspect

TINY = ("videonet.videonet_name=TinyEncoder", "audionet.audionet_config.vpre_channels=8")
STILL = ("--set", "optimizer.lr=0.0", "datamodule.data_config.augment_mouth=false", *TINY)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, TinyEncoder.name, TinyEncoder)


@pytest.fixture
def raw_losses(corpus: Corpus, here: Path) -> list[tuple[float, float]]:
    assert run(corpus, "--no_shards", *STILL)[0] == 0
    return losses()


@pytest.mark.parametrize("limit", [None, 2])
def test_a_store_of_it_is_trained_from_and_completed_in_the_step(
    corpus: Corpus, raw_losses: list[tuple[float, float]], limit: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build_store(corpus, f"tiny-{limit}", limit, *TINY)
    assert opened(store).identity.dim == 8
    capsys.readouterr()
    assert run(corpus, "--shards", store, *STILL)[0] == 0
    assert losses() == [pytest.approx(row, rel=1e-5) for row in raw_losses]
    assert ("are encoded again in every step" in capsys.readouterr().err) is (limit is not None)


def test_its_tars_are_streamed(corpus: Corpus, raw_losses: list[tuple[float, float]]) -> None:
    store = build_store(corpus, "tiny", None, *TINY)
    words = [word for split in ("train", "val") for word in ("--shards", tar(store, split))]
    assert run(corpus, *words, *STILL)[0] == 0
    assert losses()[0][1] == pytest.approx(raw_losses[0][1], rel=1e-5)


def test_inspection_encodes_with_it(corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build_store(corpus, "tiny", None, *TINY)
    with pytest.raises(SystemExit) as stopped:
        inspect([str(store), "--against", str(corpus.config_file), "--recheck", "3", "--set", *TINY])
    assert stopped.value.code == 0, capsys.readouterr().err


def test_a_store_of_the_published_encoder_is_refused(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build_store(corpus, "published")
    assert run(corpus, "--shards", store, *STILL)[0] == 2
    said = capsys.readouterr().err
    assert "was made with another identity" in said and '"name": "ResNetVideoModel"' in said
