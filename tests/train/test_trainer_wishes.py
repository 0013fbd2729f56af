"""What training.* wishes of the Trainer: limits, intervals, accumulated gradients, checkpoints."""

from pathlib import Path

import pytest
from helpers.corpus import Corpus
from helpers.recorder import recorded, steps
from helpers.runs import EPOCHS, last, run

from iianet.training.lightning_module import SeparationModule


@pytest.mark.parametrize("limit", ["3", "0.6"])
def test_a_limited_epoch_has_the_first_batches_of_a_whole_one(
    corpus: Corpus, store: Path, here: Path, limit: str
) -> None:
    with recorded(here / "whole"):
        run(corpus, "--shards", store, *EPOCHS)
    with recorded(here / "limited"):
        run(corpus, "--shards", store, *EPOCHS, f"training.limit_train_batches={limit}")
    keys = [step["keys"] for step in steps(here / "whole")]
    assert len(keys) == 2 * 5
    assert [step["keys"] for step in steps(here / "limited")] == keys[:3] + keys[5:8]


@pytest.mark.parametrize(("limit", "validated"), [("1", 1), ("0.5", 1), ("1.0", 2)])
def test_validation_can_be_limited(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, limit: str, validated: int
) -> None:
    seen = []
    monkeypatch.setattr(SeparationModule, "on_validation_batch_end", lambda *_: seen.append(1), raising=False)
    run(corpus, "--shards", store, "--set", f"training.limit_val_batches={limit}")
    assert len(seen) == validated


def test_accumulated_batches_make_one_step(corpus: Corpus, store: Path, here: Path) -> None:
    """5 batches are 3 steps, the last of one batch."""
    run(corpus, "--shards", store, *EPOCHS, "training.accumulate_grad_batches=2")
    assert last()["global_step"] == 2 * 3


def test_every_validation_of_an_epoch_can_be_the_best(corpus: Corpus, store: Path, here: Path) -> None:
    _, folder = run(corpus, "--shards", store, *EPOCHS, "training.val_check_interval=2")
    found = sorted(path.name for path in folder.glob("epoch*.ckpt"))
    assert found == ["epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt", "epoch=1-step=7.ckpt", "epoch=1-step=9.ckpt"]


@pytest.mark.parametrize("interval", ["2", "0.5", "1.0"])
def test_the_scheduler_is_stepped_once_an_epoch_however_often_it_validates(
    corpus: Corpus, store: Path, here: Path, interval: str
) -> None:
    falling = "scheduler={sche_name: StepLR, sche_config: {step_size: 1, gamma: 0.5}}"
    run(corpus, "--shards", store, *EPOCHS, falling, f"training.val_check_interval={interval}")
    assert [row["lr"] for row in last()["history"]] == pytest.approx([1e-3, 5e-4])


def test_early_stopping_counts_every_validation(corpus: Corpus, store: Path, here: Path) -> None:
    """The first one improves, the next two of no avail are the second of its epoch and the first of the next."""
    flat = ["--set", "optimizer.lr=0.0", "training.epochs=9", "training.early_stop.patience=2"]
    run(corpus, "--shards", store, *flat, "training.val_check_interval=2")
    assert last()["global_step"] == 5 + 2


def test_the_last_checkpoint_is_that_of_the_last_epoch_however_bad(corpus: Corpus, store: Path, here: Path) -> None:
    flat = ["--set", "optimizer.lr=0.0", "training.epochs=3", "training.save_top_k=1"]
    _, folder = run(corpus, "--shards", store, *flat)
    assert [path.name for path in folder.glob("epoch*.ckpt")] == ["epoch=0.ckpt"]
    assert len(last()["history"]) == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["val_check_interval=6"], "an epoch has 5"),
        (["val_check_interval=3", "accumulate_grad_batches=2"], "expected a multiple"),
        (["val_check_interval=0.6", "accumulate_grad_batches=2"], "expected a multiple"),
        (["limit_train_batches=0.1"], "leaves none"),
        (["limit_val_batches=0.1"], "leaves none"),
        (["limit_val_batches=0"], "a count of batches such as 100, or a share"),
    ],
)
def test_what_does_not_fit_into_an_epoch_is_refused_before_anything_is_written(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str], settings: list[str], said: str
) -> None:
    words = [f"training.{setting}" for setting in settings]
    assert run(corpus, "--shards", store, "--set", *words)[0] == 2
    assert said in capsys.readouterr().err
    assert not list(here.iterdir())


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("iianet.training.trainer.find_spec", lambda _: None)
    code, folder = run(corpus, "--shards", store, "--set", "training.loggers=[csv, wandb]")
    assert code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        'training.loggers names wandb, which is not installed: pip install ".[wandb]" in the project\'s folder' in said
    )
    assert not folder.exists()
