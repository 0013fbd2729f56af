"""--init_from: a new run begins from trained weights, its own or published ones, and says so in its record."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.corpus import Corpus
from helpers.runs import EPOCHS, RESULTS, last, losses, run, run_recorded

from iianet.checkpoint import read_checkpoint
from iianet.config.schema import load_config

FROZEN = ("--set", "optimizer.lr=0.0")


@pytest.fixture(scope="module")
def trained(corpus: Corpus, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an earlier run of two epochs."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(corpus, "--shards", store, *EPOCHS)[0] == 0
    return place / RESULTS


def best_model(trained: Path, folder: Path) -> Path:
    return trained / "best_model.pth"


def checkpoint(trained: Path, folder: Path) -> Path:
    scores = last(trained)["best_checkpoints"]
    return trained / min(scores, key=scores.__getitem__)


def published(trained: Path, folder: Path) -> Path:
    contents = dict(read_checkpoint(trained / "best_model.pth"))
    torch.save({**contents, "infos": {}}, folder / "published.pth")
    return folder / "published.pth"


@pytest.mark.parametrize("form", [best_model, checkpoint, published])
def test_the_first_validation_is_of_the_weights_that_a_run_began_from(
    corpus: Corpus, store: Path, here: Path, trained: Path, form: Callable[[Path, Path], Path]
) -> None:
    path = form(trained, here)
    code, folder = run(corpus, "--shards", store, "--init_from", path, *FROZEN)
    assert code == 0
    assert losses(folder)[0][1] == min(last(trained)["best_checkpoints"].values())
    assert last(folder)["global_step"] == 5, "the optimizer starts anew"


def test_the_record_of_a_run_names_the_file_and_its_digest(
    corpus: Corpus, store: Path, here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copy(trained / "best_model.pth", here / "other.pth")
    _, folder = run(corpus, "--shards", store, "--init_from", "other.pth", *FROZEN)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"begins from the weights in {path} (sha256 {digest[:12]}...)" in capsys.readouterr().err
    record = {"path": str(path), "sha256": digest}
    assert last(folder)["init_from"] == record
    assert load_config(folder / "conf.yml").main_args["init_from"] == record


def test_one_command_line_begins_from_weights_and_later_resumes_without_them(
    corpus: Corpus, store: Path, here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--shards", store, "--resume", "auto", "--init_from", "first.pth", "--set", "exp.exp_name=tiny")
    shutil.copy(trained / "best_model.pth", here / "first.pth")
    _, folder = run(corpus, *words, "training.epochs=2")
    whole = last(folder)
    shutil.rmtree("Experiments")
    run(corpus, *words, "training.epochs=1")
    (here / "first.pth").unlink()
    capsys.readouterr()
    assert run(corpus, *words, "training.epochs=2")[0] == 0
    said = capsys.readouterr().err
    assert "--init_from first.pth is not used: it is for a new run" in said
    assert "begins from the weights" not in said
    assert last(folder)["history"] == whole["history"]
    for name, value in last(folder)["state_dict"].items():
        assert torch.equal(value, whole["state_dict"][name]), name
    assert last(folder)["init_from"] == whole["init_from"] != {}
    assert load_config(folder / "conf.yml").main_args["init_from"] == whole["init_from"]


@pytest.mark.parametrize("resume", ["last", "other.ckpt"])
def test_a_run_does_not_begin_and_resume_at_once(
    corpus: Corpus, store: Path, here: Path, trained: Path, capsys: pytest.CaptureFixture[str], resume: str
) -> None:
    words = ("--init_from", trained / "best_model.pth", "--resume", resume)
    assert run(corpus, "--shards", store, *words)[0] == 2
    said = capsys.readouterr().err
    assert f"begins a new run, and --resume {resume} continues one" in said
    assert "--resume auto goes with --init_from" in said
    assert not list(here.iterdir())


def encoder_weights(path: Path) -> None:
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, path)


@pytest.mark.parametrize(
    ("write", "settings", "said"),
    [
        (lambda path: path.unlink(), [], "no such weights file"),
        (lambda path: path.write_bytes(b"cut"), [], "not a weights file"),
        (encoder_weights, [], "does not fit IIANet"),
        (None, ["audionet.audionet_config.num_blocks=3"], "num_blocks=2, and the config says 3"),
        (None, ["audionet.audionet_config.out_channels=16"], "out_channels=8, and the config says 16"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_is_written(
    corpus: Corpus,
    store: Path,
    here: Path,
    trained: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], Any] | None,
    settings: list[str],
    said: str,
) -> None:
    path = Path(shutil.copy(trained / "best_model.pth", tmp_path_factory.mktemp("weights")))
    if write is not None:
        write(path)
    words = ("--shards", store, "--init_from", path, "--set", *settings, "training.epochs=1")
    assert run(corpus, *words)[0] == 2
    assert said in capsys.readouterr().err
    assert not list(here.iterdir())


def test_another_input_than_the_weights_were_trained_with_is_said(
    corpus: Corpus, store: Path, here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ("--set", "datamodule.data_config.normalize_audio=true")
    assert run(corpus, "--shards", store, "--init_from", trained / "best_model.pth", *other)[0] == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "normalize_audio=false, and the config says true: training uses what the config says" in said


def test_weights_among_the_results_that_a_new_run_replaces_are_refused(
    corpus: Corpus, store: Path, here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, here / RESULTS)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    words = ("--init_from", RESULTS / "best_model.pth")
    assert run(corpus, "--shards", store, *words)[0] == 2
    assert "--set exp.exp_name=NAME" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_weights_to_begin_from_are_nothing_for_a_comparison(
    corpus: Corpus, store: Path, here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--init_from", trained / "best_model.pth", "--compare_modes", 2)
    assert run(corpus, "--shards", store, *words)[0] == 2
    assert "leave --init_from out" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_ranks_begin_from_the_same_weights(corpus: Corpus, store: Path, here: Path, trained: Path) -> None:
    words = ("--shards", store, "--init_from", trained / "best_model.pth", *FROZEN)
    halved = "datamodule.data_config.batch_size=1"
    done = run_recorded(corpus, *words, halved, record=here / "record", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("begins from the weights") == 1
    assert losses()[0][1] == pytest.approx(min(last(trained)["best_checkpoints"].values()), rel=1e-5)
