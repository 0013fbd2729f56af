"""train.py on tars that are read as streams."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.builds import tar
from helpers.corpus import Corpus
from helpers.recorder import Crash, Stop, recorded, steps
from helpers.runs import last, losses, run, run_recorded

BATCHES = "datamodule.data_config.stream_batches"
FROZEN = "optimizer.lr=0.0"


def words(store: Path) -> tuple[object, ...]:
    return "--shards", brace(store, 2), "--shards", tar(store, "val"), "--set"


def brace(store: Path, count: int) -> str:
    """The first training shards of a store, as one word."""
    return str(tar(store, "train")).replace("000000.tar", f"{{000000..{count - 1:06d}}}.tar")


def test_a_stream_is_trained_on_like_its_store(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, "--shards", store, "--set", FROZEN)
    [(_, expected)] = losses()
    capsys.readouterr()
    code, folder = run(corpus, *words(store), FROZEN, f"{BATCHES}=3", "datamodule.data_config.num_workers=2")
    assert code == 0
    assert losses()[0][1] == pytest.approx(expected, rel=1e-6)
    assert last()["global_step"] == 3
    assert (folder / "best_model.pth").is_file()
    said = capsys.readouterr().err
    assert said.count("The order of a stream depends on the numbers of ranks and workers") == 1


def test_an_epoch_of_unknown_length_is_one_pass_and_is_recorded(corpus: Corpus, store: Path, here: Path) -> None:
    """The losses are noted and the scheduler is stepped at the last validation, which must be known to be the last."""
    assert run(corpus, *words(store), "training.epochs=2")[0] == 0
    assert last()["global_step"] == 2 * 5  # 10 examples in batches of 2
    assert len(losses()) == 2


def test_a_pass_that_is_shorter_than_the_limit_of_an_epoch_is_an_epoch(corpus: Corpus, store: Path, here: Path) -> None:
    assert run(corpus, *words(store), "training.limit_train_batches=9", "training.epochs=2")[0] == 0
    assert last()["global_step"] == 2 * 5


def test_the_validation_shards_are_named_after_the_training_shards(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", brace(store, 1), "--set", f"{BATCHES}=2")[0] == 0
    assert "shards that are streamed: train 1, val 1. The" in capsys.readouterr().err


def test_a_resumed_epoch_starts_over(corpus: Corpus, store: Path, here: Path) -> None:
    settings = (*words(store), f"{BATCHES}=4", "training.epochs=2", "training.checkpoint_every_n_steps=1")
    with recorded(here / "first", stop=Stop("train", 6, "Crash")), pytest.raises(Crash):
        run(corpus, *settings)
    with recorded(here / "second"):
        assert run(corpus, *settings, "--resume", "last")[0] == 0
    assert [(step["epoch"], step["batch"]) for step in steps(here / "second")][-1] == (1, 3)
    assert last()["global_step"] == 8
    assert len(losses()) == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [(("--shards", "{store}"), "no store's folder"), (("--build_missing",), "nothing is built")],
)
def test_what_a_stream_cannot_do_is_refused(
    corpus: Corpus,
    store: Path,
    here: Path,
    extra: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [word.format(store=store) for word in extra]
    assert run(corpus, "--shards", tar(store, "train"), *filled)[0] == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("shards", "change", "named"),
    [
        (2, "datamodule.data_config.batch_size=1", "global batch was 2 there and is 1 here"),
        (2, "training.seed=1", "seed was 0 there and is 1 here"),
        (2, f"{BATCHES}=3", "batches in an epoch was 2 there and is 3 here"),
        (1, "training.epochs=2", r"tars was 2 of the digest \w+ there and is 1 of the digest \w+ here"),
    ],
)
def test_a_stream_that_has_changed_is_not_resumed(
    corpus: Corpus,
    store: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    shards: int,
    change: str,
    named: str,
) -> None:
    settings = ("--shards", tar(store, "val"), "--resume", "auto", "--set", f"{BATCHES}=2")
    assert run(corpus, "--shards", brace(store, 2), *settings)[0] == 0
    moved = shutil.copytree(store, here / "moved")
    assert run(corpus, "--shards", brace(moved, shards), *settings, "training.epochs=2", change)[0] == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(rf"last.ckpt: the examples would come in another order .*{named}", said)
    assert "Resume with the config and the manifests that it was trained with (conf.yml beside it)" in said
    assert run(corpus, "--shards", brace(moved, 2), *settings, "training.epochs=2")[0] == 0


def test_a_stream_cannot_resume_the_run_of_a_store(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, "--shards", store)
    assert run(corpus, *words(store), "training.epochs=2", "--resume", "last")[0] == 2
    assert "another order" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_ranks_stream_shards_of_their_own(corpus: Corpus, store: Path, here: Path) -> None:
    run(corpus, "--shards", store, "--set", FROZEN)
    [(_, expected)] = losses()
    done = run_recorded(corpus, *words(store), FROZEN, f"{BATCHES}=4", record=here / "record", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ({key for step in steps(here / "record", rank) for key in step["keys"]} for rank in range(2))
    assert not first & second
    assert first | second == set(corpus.names["train"])
    assert losses()[0][1] == pytest.approx(expected, rel=1e-5)
