"""training.test_every_n_epochs: the test split is run beside validation, and nothing else changes by it."""

import re
import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from helpers.builds import build_store, quick_encoder, tar
from helpers.corpus import Corpus, make_corpus
from helpers.recorder import Stop, recorded, steps
from helpers.runs import RESULTS, last, run, run_recorded
from matplotlib.figure import Figure

from iianet.training.testing import PeriodicTest

EVERY = "training.test_every_n_epochs"
STATIC = "datamodule.data_config.train_mixing=static"
FROZEN = "optimizer.lr=0.0"


def figures(folder: Path = RESULTS) -> dict[int, float]:
    """Test loss of each epoch that has one."""
    return {row["epoch"]: row["test_loss"] for row in last(folder)["history"] if "test_loss" in row}


def as_test(corpus: Corpus, split: str) -> str:
    """The setting that makes another split the test split."""
    return f"datamodule.data_config.test_dir={corpus.list_file(split, 'mix').parent}"


@pytest.mark.parametrize(("mode", "precision"), [("store", "32-true"), ("raw", "32-true"), ("store", "bf16-mixed")])
def test_the_figure_is_what_validation_would_be_on_the_same_examples(
    corpus: Corpus, store: Path, here: Path, mode: str, precision: str
) -> None:
    """4 examples in batches of 3 and 1."""
    words = [*(["--shards", store] if mode == "store" else ["--no_shards"]), "--precision", precision]
    settings = [f"{EVERY}=1", as_test(corpus, "val"), "datamodule.data_config.batch_size=3", "training.epochs=2"]
    assert run(corpus, *words, "--set", *settings)[0] == 0
    assert figures() == {row["epoch"]: row["val_loss"] for row in last()["history"]}


def test_it_is_run_after_epoch_0_and_every_so_many(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run(corpus, "--shards", store, "--set", f"{EVERY}=2", "training.epochs=4")
    assert list(figures()) == [0, 2]
    lines = [line for line in capsys.readouterr().err.splitlines() if "train loss" in line]
    for number, line in enumerate(lines):
        found = re.search(r"validation SI-SNR \S+ dB(?:, test (\S+) dB)?, lr", line)
        assert found, line
        assert found[1] == (f"{-figures()[number]:.2f}" if number in figures() else None)
    (metrics,) = folder.glob("csv/*/metrics.csv")
    names, *rows = (row.split(",") for row in metrics.read_text().splitlines())
    for name, sign in (("test_loss", 1), ("test_si_snr", -1)):
        values = [float(row[names.index(name)]) for row in rows if row[names.index(name)]]
        assert values == pytest.approx([sign * loss for loss in figures().values()])


def test_it_is_run_once_an_epoch_however_often_that_is_validated(corpus: Corpus, store: Path, here: Path) -> None:
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeriodicTest, "_loss", lambda _, trainer, __: float(ran.append(trainer.global_step) or len(ran)))
        run(corpus, "--shards", store, "--set", f"{EVERY}=1", "training.val_check_interval=2", "training.epochs=2")
    assert ran == [4, 9], "after batches 2 and 4 of 5 it is validated"
    assert figures() == {0: 1.0, 1: 2.0}


def test_nothing_else_changes_by_it(corpus: Corpus, store: Path, here: Path) -> None:
    settings = ("training.epochs=3", "training.save_top_k=2", f"{EVERY}=1")
    run(corpus, "--shards", store, "--set", *settings)
    with_it = last()
    assert len(figures()) == 3
    shutil.rmtree("Experiments")
    run(corpus, "--shards", store, "--set", *settings[:-1])
    without = last()
    for row in with_it["history"]:
        del row["test_loss"]
    assert with_it["history"] == without["history"]
    assert with_it["best_checkpoints"] == without["best_checkpoints"]
    assert with_it["loops"] == without["loops"]
    for name, value in with_it["state_dict"].items():
        assert torch.equal(value, without["state_dict"][name]), name


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_random_generators_are_left_as_they_were(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    test, states = PeriodicTest.on_validation_epoch_end, []

    def watched(self: PeriodicTest, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        before = torch.get_rng_state()
        test(self, trainer, module)
        states.append(torch.equal(before, torch.get_rng_state()))

    monkeypatch.setattr(PeriodicTest, "on_validation_epoch_end", watched)
    run(corpus, "--shards", store, "--set", f"{EVERY}=1", f"datamodule.data_config.num_workers={workers}")
    assert states == [True]
    assert len(figures()) == 1


def test_a_run_that_is_stopped_within_it_stops_there_and_validates_again(
    corpus: Corpus, store: Path, here: Path
) -> None:
    """With 4 examples in 2 batches."""
    words = ("--shards", store, "--set", f"{EVERY}=1", as_test(corpus, "val"))
    with recorded(here / "stopped", Stop("test", 1, "SIGTERM")):
        assert run(corpus, *words)[0] == 143
    assert last()["validation_is_due"] and last()["history"] == []
    assert not (RESULTS / "best_model.pth").exists()
    with recorded(here / "resumed"):
        assert run(corpus, *words, "--resume", "last")[0] == 0
    assert steps(here / "resumed") == []
    assert figures() == {0: last()["history"][0]["val_loss"]}


def test_a_run_may_begin_or_cease_to_test_when_it_resumes(corpus: Corpus, store: Path, here: Path) -> None:
    for number, setting in enumerate((f"{EVERY}=null", f"{EVERY}=1", f"{EVERY}=null"), start=1):
        words = ("--shards", store, "--set", setting, f"training.epochs={number}", "--resume", "auto")
        assert run(corpus, *words)[0] == 0
    assert list(figures()) == [1]
    assert len(last()["history"]) == 3


def test_a_test_split_that_nobody_asks_for_need_not_be_there(here: Path) -> None:
    corpus = make_corpus(here / "corpus", {"train": 6, "val": 2}, frames=5)
    assert run(corpus, "--no_shards")[0] == 0


@pytest.mark.parametrize("mode", ["store", "raw"])
def test_a_test_split_that_is_asked_for_and_not_there_is_refused_at_the_start(
    here: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    corpus = make_corpus(here / "corpus", {"train": 6, "val": 2}, frames=5)
    words = ["--shards", here / "st"] if mode == "store" else ["--no_shards"]
    with quick_encoder():
        build_store(corpus, here / "st", splits=("train", "val"))
        assert run(corpus, *words, "--set", f"{EVERY}=10")[0] == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error: test: " in said and str(corpus.root / "json/tt") in said
    assert said.endswith("or leave training.test_every_n_epochs out" + ("." if mode == "store" else ""))
    assert not Path("Experiments").exists()


def test_a_store_without_it_is_refused_where_what_is_missing_is_skipped(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = make_corpus(here / "corpus", {"train": 6, "val": 2, "test": 2}, frames=5)
    with quick_encoder():
        build_store(small, here / "st", splits=("train", "val"))
    words = ("--shards", here / "st", "--set", f"{EVERY}=1", "--on_missing")
    assert run(small, *words, "skip")[0] == 2
    said = capsys.readouterr().err
    assert (
        f"test: {here / 'st'} holds none of its 2 utterances, and --on_missing is skip; build them: build-shards"
        in said
    )
    assert not Path("Experiments").exists()
    assert run(small, *words, "encode")[0] == 0
    assert len(figures()) == 1


def test_examples_that_cannot_be_read_leave_the_epoch_without_a_figure_and_end_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(here / "corpus", {"train": 6, "val": 2, "test": 2}, frames=5)
    with quick_encoder():
        build_store(corpus, here / "st")
    opened = PeriodicTest._loss

    def broken(self: PeriodicTest, *words: object) -> float:
        for wav in (corpus.root / "audio/tt").rglob("*.wav"):
            wav.write_bytes(b"broken since the run began")
        return opened(self, *words)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeriodicTest, "_loss", broken)
        assert run(corpus, "--shards", here / "st", "--set", f"{EVERY}=1")[0] == 0
    said = capsys.readouterr().err
    assert "epoch 0: the test loss is nan, which is not recorded" in said
    assert "epoch 0: skipped 2 rows" in said
    assert figures() == {} and len(last()["history"]) == 1


def test_the_curves_show_it_beside_validation(
    corpus: Corpus, store: Path, here: Path, pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *words, **named: (drawn.append(self), save(self, *words, **named))
    )
    run(corpus, "--shards", store, "--set", f"{EVERY}=2", "training.epochs=3")
    _, losses, _ = drawn[-1].axes
    points = {str(line.get_label()): list(zip(*line.get_data(), strict=True)) for line in losses.lines}
    assert [epoch for epoch, _ in points["validation"]] == [0, 1, 2]
    assert points["test"] == list(figures().items())


def brace(store: Path, split: str, count: int) -> str:
    return str(tar(store, split)).replace("000000.tar", f"{{000000..{count - 1:06d}}}.tar")


def test_tars_that_are_streamed_are_tested_too(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, "--shards", store, "--set", f"{EVERY}=1", FROZEN)
    expected = figures()
    words = ["--shards", brace(store, "train", 2), "--shards", tar(store, "val")]
    capsys.readouterr()
    assert run(corpus, *words, "--shards", tar(store, "test"), "--set", f"{EVERY}=1", FROZEN)[0] == 0
    assert figures() == pytest.approx(expected, rel=1e-6)
    assert "shards that are streamed: train 2, val 1, test 1. The" in capsys.readouterr().err


def test_tars_without_a_test_split_are_refused(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "tars").mkdir()
    for split in ("train", "val"):
        shutil.copy(tar(store, split), here / "tars" / f"{split}-0.tar")
    assert run(corpus, "--shards", "tars/train-0.tar", "--set", f"{EVERY}=1")[0] == 2
    said = capsys.readouterr().err
    expected = (
        "Name the shards for the test split (training.test_every_n_epochs) by one more --shards, with 'test' in it"
    )
    assert f"tars/test-0.tar: no such file. {expected}" in said
    assert not Path("Experiments").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "size"), [(2, 1), (3, 2)])
@pytest.mark.timeout(240)
def test_ranks_share_the_examples_and_agree_on_the_figure(
    corpus: Corpus, store: Path, here: Path, ranks: int, size: int
) -> None:
    """4 examples in batches of 1 on 2 ranks; of 2 on 3 ranks, of which the last has none."""
    settings = (f"{EVERY}=1", as_test(corpus, "val"), FROZEN, "training.limit_train_batches=1")
    batches = f"datamodule.data_config.batch_size={size}"
    words = ("--shards", store, "--set", *settings, batches)
    done = run_recorded(corpus, *words, record=here / "record", ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = last()["history"]
    assert row["test_loss"] == row["val_loss"]
    run(corpus, *words)
    assert row["test_loss"] == pytest.approx(figures()[0], rel=1e-5)
