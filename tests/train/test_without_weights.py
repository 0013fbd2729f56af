"""Training from a complete store needs no weights file, and says whose weights it takes for the config's."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from helpers.builds import build_store as build_splits
from helpers.builds import tar
from helpers.commands import run_main
from helpers.corpus import Corpus
from helpers.runs import build_store, last, losses, run

from iianet.checkpoint import export_published
from iianet.encoder.clip_encoder import ClipEncoder
from iianet_cli import evaluate_cli

PRETRAIN = "videonet.videonet_config.pretrain"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lips.pth"
    torch.save({"model_state_dict": export_published(ClipEncoder.load_network(None, seed=3))}, path)
    return path


@pytest.fixture(scope="module")
def complete(corpus: Corpus, weights: Path) -> Path:
    return build_store(corpus, "of-weights", None, f"{PRETRAIN}={weights}")


@pytest.fixture(scope="module")
def partial(corpus: Corpus, weights: Path) -> Path:
    """2 of 6 utterances to train on, and 2 of 3 to validate."""
    return build_store(corpus, "part-of-weights", 2, f"{PRETRAIN}={weights}")


@pytest.fixture
def absent(here: Path) -> str:
    """The setting that names the file where it is not."""
    return f"{PRETRAIN}={here / 'elsewhere' / 'lips.pth'}"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_complete_store_is_trained_on_as_with_the_file_and_says_so(
    corpus: Corpus, complete: Path, weights: Path, here: Path, absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", complete, "--set", f"{PRETRAIN}={weights}")[0] == 0
    expected = losses()
    assert "is not there" not in said(capsys)
    shutil.rmtree("Experiments")
    assert run(corpus, "--shards", complete, "--set", absent)[0] == 0
    assert losses() == expected
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    told = said(capsys)
    assert f"INFO: {complete} was made with the weights lips.pth (sha256 {digest}); the config's" in told
    assert "lips.pth is not there to be compared" in told


def test_a_file_of_another_name_that_is_not_there_is_a_warning(
    corpus: Corpus, complete: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", complete, "--set", f"{PRETRAIN}=others.pth")[0] == 0
    assert f"WARNING: {complete} was made with the weights lips.pth" in said(capsys)


@pytest.mark.parametrize("flags", [(), ("--build_missing",), ("--build_missing", "--on_missing", "skip")])
def test_what_would_have_to_be_encoded_without_the_file_is_counted_before_anything_is_written(
    corpus: Corpus, partial: Path, here: Path, absent: str, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    assert run(corpus, "--shards", partial, *flags, "--set", absent)[0] == 2
    told = said(capsys)
    assert "no such weights file (videonet.videonet_config.pretrain), which is needed for 5 utterances not" in told
    assert "stored (train 4, val 1)" in told
    assert ("--on_missing skip leaves them out" in told) == (not flags)
    assert "Download" in told and not list(here.iterdir())


@pytest.mark.parametrize(
    ("store", "words"),
    [("partial", ["--on_missing", "skip"]), ("complete", ["--build_missing"]), ("complete", ["--on_missing", "error"])],
)
def test_where_nothing_has_to_be_encoded_the_file_is_not_needed(
    corpus: Corpus, here: Path, absent: str, request: pytest.FixtureRequest, store: str, words: list[str]
) -> None:
    place = request.getfixturevalue(store)
    assert run(corpus, "--shards", place, *words, "--set", absent)[0] == 0
    assert len(last()["history"]) == 1


def test_the_test_split_counts_where_it_is_run(
    corpus: Corpus, weights: Path, here: Path, absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build_splits(corpus, here / "st", f"{PRETRAIN}={weights}", splits=("train", "val"))
    words = ("--shards", here / "st", "--set", absent)
    assert run(corpus, *words, "training.test_every_n_epochs=1")[0] == 2
    assert "needed for 2 utterances not stored (test 2);" in said(capsys)
    assert run(corpus, *words)[0] == 0


def test_raw_mode_and_comparisons_need_the_file_at_the_start(
    corpus: Corpus, complete: Path, here: Path, absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--no_shards"], ["--shards", complete, "--compare_modes", 2]):
        assert run(corpus, *words, "--set", absent)[0] == 2
        assert "lips.pth: no such weights file (videonet.videonet_config.pretrain). Download" in said(capsys)
    assert not list(here.iterdir())


def test_a_store_of_random_weights_is_not_of_a_file_that_is_not_there(
    corpus: Corpus, store: Path, here: Path, absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", store, "--set", absent)[0] == 2
    told = said(capsys)
    assert f"{store}: was made with the encoder ResNetVideoModel and random weights of seed 0; the config asks" in told
    assert not list(here.iterdir())


def test_another_arithmetic_than_the_store_s_is_refused_without_the_file_too(
    corpus: Corpus, complete: Path, here: Path, absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "videonet.videonet_config.precision=bf16"
    assert run(corpus, "--shards", complete, "--set", absent, other)[0] == 2
    assert "was made with another identity (precision: " in said(capsys)


def test_null_is_no_name_for_the_weights_of_a_store(
    corpus: Corpus, complete: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stands for random weights, which would encode whatever turns out to be missing."""
    assert run(corpus, "--shards", complete, "--set", f"{PRETRAIN}=null")[0] == 2
    told = said(capsys)
    assert "encoder fingerprint" in told
    assert "pretrain is null, which stands for random weights" in told
    assert "--set videonet.videonet_config.pretrain=lips.pth, which need not be there" in told
    assert run(corpus, "--shards", complete, "--set", f"{PRETRAIN}=lips.pth")[0] == 0


def test_a_shard_that_turns_out_to_be_damaged_needs_the_file_after_all(
    corpus: Corpus, complete: Path, here: Path, absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(complete, here / "damaged")
    path = tar(damaged, "train")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run(corpus, "--shards", damaged, "--set", absent)[0] != 0
    told = said(capsys)
    assert f"{path}" in told and "count as missing" in told
    assert "which is needed for utterances whose embeddings are not stored, or cannot be read any more" in told


def test_an_evaluation_needs_the_file_where_its_split_lacks_something(
    corpus: Corpus, complete: Path, partial: Path, here: Path, absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run(corpus, "--shards", complete, "--set", absent)
    words = ["--conf_dir", corpus.config_file, "--checkpoint", folder / "best_model.pth", "--set", absent, "--shards"]
    assert run_main(evaluate_cli.main, [*words, complete, "--out", "whole"], capsys).code == 0
    assert run_main(evaluate_cli.main, [*words, partial, "--out", "test"], capsys).code == 0, "its test split is whole"
    refused = run_main(evaluate_cli.main, [*words, partial, "--data_split", "train", "--out", "train"], capsys)
    assert refused.code == 2
    assert "needed for 4 utterances not stored (train 4)" in refused.err
    assert not Path("train").exists()
    assert "Download" in run_main(evaluate_cli.main, [*words[:-1], "--no_shards"], capsys).err
