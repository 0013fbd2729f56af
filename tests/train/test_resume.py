"""--resume: which checkpoints it resumes from, and which it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.corpus import Corpus, make_corpus
from helpers.runs import EPOCHS, RESULTS, build_store, last, run


def test_a_resumed_run_goes_on_where_it_stopped(corpus: Corpus, store: Path, here: Path) -> None:
    run(corpus, "--shards", store, *EPOCHS)
    code, folder = run(corpus, "--shards", store, "--set", "training.epochs=4", "--resume", "last")
    assert code == 0
    assert [row["epoch"] for row in last(folder)["history"]] == [0, 1, 2, 3]
    assert last(folder)["global_step"] == 4 * 5  # 10 examples in batches of 2


def test_the_scheduler_is_stepped_once_an_epoch_and_resumed(corpus: Corpus, store: Path, here: Path) -> None:
    falling = ["--set", "scheduler={sche_name: StepLR, sche_config: {step_size: 1, gamma: 0.5}}"]
    run(corpus, "--shards", store, *falling, *EPOCHS)
    _, folder = run(corpus, "--shards", store, *falling, "--set", "training.epochs=3", "--resume", "last")
    assert [row["lr"] for row in last(folder)["history"]] == pytest.approx([1e-3, 5e-4, 2.5e-4])


def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(corpus: Corpus, store: Path, here: Path) -> None:
    _, folder = run(corpus, "--shards", store, "--set", "training.epochs=3")
    whole = last(folder)["state_dict"]
    run(corpus, "--shards", store, "--set", "training.epochs=1")
    run(corpus, "--shards", store, "--set", "training.epochs=3", "--resume", "last")
    for name, value in last(folder)["state_dict"].items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"cut"), "weights file"),
        (lambda path: torch.save({"state_dict": {}}, path), "not a checkpoint of train.py"),
        (lambda path: torch.save({"state_dict": {}}, path), "begin a new run from its weights with --init_from"),
    ],
)
def test_what_is_no_checkpoint_is_not_resumed(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Any], said: str
) -> None:
    make(here / "odd.ckpt")
    assert run(corpus, "--shards", store, "--resume", here / "odd.ckpt")[0] == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_not_resumed(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, "--shards", store)
    other = ["--set", "audionet.audionet_config.out_channels=16", "--resume", "last"]
    assert run(corpus, "--shards", store, *other)[0] == 2
    assert "tensors do not fit audionet.audionet_config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there", "here_now", "said"),
    [
        ("training.seed=0", "training.seed=1", "seed was 0 there and is 1 here"),
        (
            "datamodule.data_config.batch_size=2",
            "datamodule.data_config.batch_size=1",
            "global batch was 2 there and is 1 here",
        ),
        (
            "datamodule.data_config.train_mixing=dynamic",
            "datamodule.data_config.train_mixing=static",
            "dynamic_mixing was True there and is False here",
        ),
        (
            "training.limit_train_batches=3",
            "training.limit_train_batches=4",
            "batches in an epoch was 3 there and is 4 here",
        ),
    ],
)
def test_another_order_of_examples_is_not_gone_on_from(
    corpus: Corpus,
    store: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    there: str,
    here_now: str,
    said: str,
) -> None:
    run(corpus, "--shards", store, "--set", there)
    before = {path: path.read_bytes() for path in RESULTS.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(corpus, "--shards", store, "--set", here_now, "--resume", "last")[0] == 2
    message = capsys.readouterr().err
    assert said in message
    assert "without --resume" in message
    assert {path: path.read_bytes() for path in RESULTS.rglob("*") if path.is_file()} == before


def test_another_manifest_is_not_gone_on_from(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(here / "corpus", frames=5)
    run(corpus)
    make_corpus(here / "corpus", {"train": 7, "val": 2, "test": 2}, frames=5)
    capsys.readouterr()
    limited = "training.limit_train_batches=5"
    assert run(corpus, "--resume", "last", "--set", limited)[0] == 2
    message = capsys.readouterr().err
    assert "train manifest was" in message
    assert "val manifest" not in message
    assert "batches in an epoch" not in message


@pytest.mark.parametrize("store_now", ["raw", pytest.param("partial", marks=pytest.mark.slow)])
def test_another_store_or_number_of_workers_is_gone_on_with(
    corpus: Corpus, store: Path, here: Path, store_now: str
) -> None:
    run(corpus, "--shards", store)
    words = ["--no_shards"] if store_now == "raw" else ["--shards", build_store(corpus, "fewer", 4)]
    workers = "datamodule.data_config.num_workers=1"
    assert run(corpus, *words, *EPOCHS, workers, "--resume", "last")[0] == 0
    assert [row["epoch"] for row in last()["history"]] == [0, 1]


def test_a_run_that_stopped_early_stays_so_unless_it_has_more_patience(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = ["--set", "optimizer.lr=0.0", "training.epochs=6"]
    run(corpus, "--shards", store, *flat, "training.early_stop.patience=1")
    assert len(last()["history"]) == 2
    capsys.readouterr()
    code, folder = run(corpus, "--shards", store, *flat, "training.early_stop.patience=1", "--resume", "last")
    assert code == 0
    assert len(last()["history"]) == 2
    assert "raise training.early_stop.patience" in capsys.readouterr().err
    assert (folder / "best_model.pth").exists()
    run(corpus, "--shards", store, *flat, "training.early_stop.patience=3", "--resume", "last")
    assert len(last()["history"]) == 4


def test_a_run_that_would_mix_others_is_not_resumed(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "datamodule.data_config"
    apart = ["--set", f"{key}.mix_apart=video", f"{key}.utterance_names='_00(?P<video>[0-9])'"]
    assert run(corpus, "--shards", store, "--resume", "auto")[0] == 0
    assert run(corpus, "--shards", store, *apart, "--resume", "last")[0] == 2
    assert "in another order than it was trained in: mix_apart was not recorded there" in capsys.readouterr().err
