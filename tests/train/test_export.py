"""export-iianet: any checkpoint's separator as a model file, whole or not at all, without the config or the data."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import Outcome, run_main
from helpers.corpus import Corpus
from helpers.runs import EPOCHS, RESULTS, ROOT, last, run

from iianet.checkpoint import export_published, read_checkpoint
from iianet.inference.trained import open_trained
from iianet_cli import export_cli


@pytest.fixture(scope="module")
def trained(corpus: Corpus, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(corpus, "--shards", store, *EPOCHS)[0] == 0
    return place / RESULTS


def export(capsys: pytest.CaptureFixture[str], *words: object) -> Outcome:
    return run_main(export_cli.main, words, capsys)


def test_the_best_checkpoint_gives_the_very_file_that_training_left(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = last(trained)["best_checkpoints"]
    checkpoint = trained / min(scores, key=scores.__getitem__)
    outcome = export(capsys, checkpoint, "--out", "mine.pth")
    step = read_checkpoint(checkpoint)["global_step"]
    assert outcome.code == 0
    assert outcome.out == f"mine.pth: the separator of {checkpoint} after step {step}\n"
    assert (here / "mine.pth").read_bytes() == (trained / "best_model.pth").read_bytes()
    assert [path.name for path in here.iterdir()] == ["mine.pth"]


def test_a_checkpoint_alone_is_enough_and_lends_its_name(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "last.ckpt", here)
    assert export(capsys, "last.ckpt").code == 0
    state = last(trained)["state_dict"]
    model = open_trained(here / "last.pth").model
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in model.state_dict().items())
    found = read_checkpoint(here / "last.pth")
    assert found["state_dict"].keys() == export_published(model).keys()
    assert found["model_args"] == {"n_src": 2}


def test_a_file_of_the_reference_s_trainer_is_taken_too(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the names of its LightningModule, whose frozen encoder is left out."""
    state = read_checkpoint(trained / "best_model.pth")["state_dict"]
    ours = {f"audio_model.{name}": value for name, value in state.items()}
    torch.save({"state_dict": {**ours, "video_model.conv.weight": torch.zeros(3)}}, here / "theirs.ckpt")
    assert export(capsys, "theirs.ckpt").code == 0
    written = read_checkpoint(here / "theirs.pth")["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in written.items())


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_replaced(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "best_model.pth").write_bytes(b"mine")
    words = (trained / "last.ckpt", "--out", "best_model.pth")
    refused = export(capsys, *words)
    assert refused.code == 2
    assert "best_model.pth: exists; give another file to write, --out FILE, or --overwrite" in refused.err
    assert (here / "best_model.pth").read_bytes() == b"mine"
    assert export(capsys, *words, "--overwrite").code == 0
    assert open_trained(here / "best_model.pth")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.ckpt"], "nowhere.ckpt: no such weights file"),
        (["broken.ckpt"], "broken.ckpt: not a weights file"),
        (["last.ckpt", "--out", "sub"], "sub: is a folder"),
        (["last.ckpt", "--out", "nowhere/x.pth"], "nowhere/x.pth: its folder does not exist"),
        (["last.ckpt", "--out", "last.ckpt", "--overwrite"], "last.ckpt: is the file to read"),
        (["last.ckpt", "--ot", "x.pth"], "--ot: unknown flag; did you mean --out?"),
        ([], "CKPT"),
    ],
)
def test_what_cannot_be_exported_says_why_and_changes_nothing(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    shutil.copy(trained / "last.ckpt", here)
    (here / "broken.ckpt").write_bytes(b"cut")
    (here / "sub").mkdir()
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    outcome = export(capsys, *words)
    assert outcome.code == 2
    assert said in outcome.err and "Traceback" not in outcome.err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_disk_that_is_full_leaves_no_fragment(trained: Path, here: Path) -> None:
    command = 'ulimit -f 16; exec "$0" "$@"'
    words = [sys.executable, "-m", "iianet_cli.export_cli", str(trained / "last.ckpt"), "--out", "x.pth"]
    ended = subprocess.run(
        ["bash", "-c", command, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr[-2000:]
    assert "x.pth: cannot be written: File too large" in ended.stderr
    assert not list(here.iterdir())
