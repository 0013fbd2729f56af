"""The folder of a run: one training at a time, moved and renamed without loss, safe from what checkpoints say."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.corpus import Corpus
from helpers.runs import EPOCHS, RESULTS, ROOT, TRAIN, last, run

from iianet.config.schema import load_config
from iianet.training.best_checkpoints import BestCheckpoints
from iianet.training.lightning_module import SeparationModule
from iianet_cli import train_cli

FIRST = ("--set", "training.epochs=1")
MOVED = RESULTS.with_name("moved")


@pytest.fixture(scope="module")
def runs(corpus: Corpus, store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of finished runs, by their epochs."""
    found = {}
    for epochs in (1, 2):
        found[epochs] = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(found[epochs])
            assert run(corpus, "--shards", store, "--set", f"training.epochs={epochs}")[0] == 0
    return found


@pytest.fixture
def once(runs: dict[int, Path], here: Path) -> Path:
    """The folder of a run of one epoch, in the working directory."""
    return shutil.copytree(runs[1] / RESULTS, here / RESULTS).relative_to(here)


@pytest.fixture
def twice(runs: dict[int, Path], here: Path) -> Path:
    """The folder of a run of two epochs, in the working directory."""
    return shutil.copytree(runs[2] / RESULTS, here / RESULTS).relative_to(here)


def change(path: Path, **entries: Any) -> None:
    """Change entries of a checkpoint."""
    torch.save({**torch.load(path, weights_only=True), **entries}, path)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("words", [(), ("--resume", "last")])
def test_a_second_training_of_one_name_is_refused_and_changes_nothing(
    corpus: Corpus, store: Path, here: Path, once: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    program = (
        "import sys; from pathlib import Path; from iianet.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1]), 'tiny').claimed(fresh=False): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(RESULTS.parent.absolute())]
    first = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None
    first.stdout.readline()
    before = files(here)
    capsys.readouterr()
    assert run(corpus, "--shards", store, *words, "--set", "training.epochs=2")[0] == 2
    message, after = capsys.readouterr().err, files(here)
    first.communicate()
    assert f"process {first.pid} on " in message
    assert "is training there" in message
    assert "another name: --set exp.exp_name=NAME" in message
    assert after == before


def test_a_renamed_run_keeps_its_best_checkpoints(corpus: Corpus, store: Path, here: Path, twice: Path) -> None:
    before = json.loads((RESULTS / "best_k_models.json").read_text())
    RESULTS.rename(MOVED)
    named = ("--set", "exp.exp_name=moved", "training.epochs=3", "optimizer.lr=0.0")
    assert run(corpus, "--shards", store, *named, "--resume", "last")[0] == 0
    after = json.loads((MOVED / "best_k_models.json").read_text())
    assert {name: after[name] for name in before} == before
    assert sorted(after) == ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt"]
    assert all((MOVED / name).is_file() for name in after)
    assert list(last(MOVED)["best_checkpoints"]) == list(after)


def test_a_moved_run_that_gets_no_better_still_ends_with_its_best_model(
    corpus: Corpus, store: Path, here: Path, twice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = min(json.loads((RESULTS / "best_k_models.json").read_text()).items(), key=lambda item: item[1])[0]
    RESULTS.rename(MOVED)
    (MOVED / "best_model.pth").unlink()
    worse = SeparationModule._loss

    def loss(self: SeparationModule, batch: Any, stage: str, mean: Any) -> torch.Tensor:
        found = worse(self, batch, stage, mean)
        if stage == "val":
            mean.sums[0] += 1000
        return found

    monkeypatch.setattr(SeparationModule, "_loss", loss)
    words = ("--set", "exp.exp_name=moved", "training.epochs=3", "training.save_top_k=2", "--resume", "last")
    assert run(corpus, "--shards", store, *words)[0] == 0
    assert next(iter(json.loads((MOVED / "best_k_models.json").read_text()))) == best
    assert (MOVED / "best_model.pth").exists()


def test_best_checkpoints_that_are_gone_are_named_and_left_out(
    corpus: Corpus, store: Path, here: Path, twice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (RESULTS / "epoch=0.ckpt").unlink()
    assert run(corpus, "--shards", store, "--set", "training.epochs=3", "--resume", "last")[0] == 0
    assert "epoch=0.ckpt, which the checkpoint lists among the best, is not there" in capsys.readouterr().err
    assert "epoch=0.ckpt" not in json.loads((RESULTS / "best_k_models.json").read_text())


def test_a_run_that_resumes_from_another_folder_leaves_that_one_as_it_is(
    corpus: Corpus, store: Path, here: Path, once: Path
) -> None:
    before = files(RESULTS)
    words = ("--set", "exp.exp_name=moved", "training.epochs=2", "training.save_top_k=1")
    assert run(corpus, "--shards", store, *words, "--resume", RESULTS / "last.ckpt")[0] == 0
    assert files(RESULTS) == before
    assert list(json.loads((MOVED / "best_k_models.json").read_text())) == ["epoch=1.ckpt"]


@pytest.mark.parametrize("name", ["../victim", "..", "/victim", "sub/epoch=0.ckpt", "epoch=0.ckpt/..", "", "notes.txt"])
def test_a_checkpoint_that_names_other_files_is_refused_and_deletes_nothing(
    corpus: Corpus, store: Path, here: Path, once: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    victim = RESULTS.with_name("victim")
    victim.mkdir()
    (victim / "thesis").write_text("kept")
    change(RESULTS / "last.ckpt", best_checkpoints={name: 99.0})
    before = files(here)
    words = ("--set", "training.epochs=3", "training.save_top_k=1", "--resume", "last")
    assert run(corpus, "--shards", store, *words)[0] == 2
    assert "expected the name of a *.ckpt file in its folder" in capsys.readouterr().err
    assert files(here) == before


def test_whole_paths_where_lightning_would_take_them_over_are_refused(
    corpus: Corpus, store: Path, here: Path, once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = once.absolute() / ".." / "victim.txt"  # Lightning looks whether its path begins as the folder's
    victim.write_text("kept")
    checkpoint = torch.load(once / "last.ckpt", weights_only=True)
    key = BestCheckpoints(once, load_config(corpus.config_file)).state_key
    named = {"kth_best_model_path": str(victim), "best_k_models": {str(victim): torch.tensor(99.0)}}
    state = {**named, "best_model_score": torch.tensor(0.0), "kth_value": torch.tensor(99.0), "best_model_path": ""}
    change(once / "last.ckpt", callbacks={**checkpoint["callbacks"], key: state})
    words = ("--set", "training.epochs=3", "training.save_top_k=1", "--resume", "last")
    code = run(corpus, "--shards", store, *words)[0]
    assert victim.exists()
    assert code == 2
    message = capsys.readouterr().err
    assert "last.ckpt: what it holds cannot be restored" in message
    assert "expected nothing. Give another checkpoint of the run" in message


def test_a_folder_under_a_checkpoints_name_is_never_deleted(
    corpus: Corpus, store: Path, here: Path, once: Path
) -> None:
    (RESULTS / "old.ckpt").mkdir()
    (RESULTS / "old.ckpt" / "thesis").write_text("kept")
    change(RESULTS / "last.ckpt", best_checkpoints={"old.ckpt": 99.0})
    words = ("--set", "training.epochs=3", "training.save_top_k=1", "--resume", "last")
    assert run(corpus, "--shards", store, *words)[0] == 0
    assert (RESULTS / "old.ckpt" / "thesis").read_text() == "kept"


@pytest.mark.parametrize(
    "entries",
    [
        {"history": [{"epoch": 0, "train_loss": "low", "val_loss": 0.0, "lr": 0.1}]},
        {"order": {"seed": [1]}},
        {"settings": ["optimizer.lr"]},
        {"epochs_done": "all"},
        {"epochs_done": -1},
        {"loops": {}},
        {"state_dict": {"model.w": 3}},
    ],
)
def test_entries_of_another_kind_are_refused(
    corpus: Corpus, store: Path, here: Path, once: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, Any]
) -> None:
    change(RESULTS / "last.ckpt", **entries)
    assert run(corpus, "--shards", store, *EPOCHS, "--resume", "last")[0] == 2
    message = capsys.readouterr().err
    assert "last.ckpt: its entries are not what train.py writes" in message
    assert "Give another checkpoint of the run" in message


@pytest.mark.parametrize(
    "position",
    [None, {}, {"epoch": "x"}, {"epoch": -1, "batch": -2}, {"epoch": 1.0, "batch": 0}, {"epoch": 0, "batch": 3}],
)
def test_a_position_that_is_not_where_the_run_stood_is_refused(
    corpus: Corpus, store: Path, here: Path, once: Path, capsys: pytest.CaptureFixture[str], position: Any
) -> None:
    change(RESULTS / "last.ckpt", SeparationData=position)
    assert run(corpus, "--shards", store, *EPOCHS, "--resume", "last")[0] == 2
    message = capsys.readouterr().err
    assert "last.ckpt: its entries are not what train.py writes: SeparationData: found " in message
    assert "expected {'epoch': 1, 'batch': 0}, where its loops stand" in message


@pytest.mark.parametrize(
    "position", [{}, {"epoch": 0, "batch": 0}, {"epoch": 1, "batch": 3}, {"epoch": 1.0, "batch": 0}]
)
def test_a_position_that_lightning_would_restore_is_refused_likewise(
    corpus: Corpus, store: Path, here: Path, once: Path, capsys: pytest.CaptureFixture[str], position: Any
) -> None:
    loops = last()["loops"]
    assert loops["fit_loop"]["state_dict"]["combined_loader"] == [{"epoch": 1, "batch": 0}]
    loops["fit_loop"]["state_dict"]["combined_loader"] = [position]
    change(RESULTS / "last.ckpt", loops=loops)
    assert run(corpus, "--shards", store, *EPOCHS, "--resume", "last")[0] == 2
    message = capsys.readouterr().err
    assert "last.ckpt: its entries are not what train.py writes: SeparationData: found " in message
    assert "expected {'epoch': 1, 'batch': 0}, where its loops stand" in message


def test_auto_begins_and_resumes_with_one_command_line(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", store, "--resume", "auto", *FIRST)[0] == 0
    assert "does not exist, a new run begins" in capsys.readouterr().err
    assert run(corpus, "--shards", store, "--resume", "auto", *EPOCHS)[0] == 0
    assert "Resuming from" in capsys.readouterr().err
    assert [row["epoch"] for row in last()["history"]] == [0, 1]
    assert not list(RESULTS.parent.glob("tiny-before-*"))
    content = bytearray((RESULTS / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (RESULTS / "last.ckpt").write_bytes(content)
    assert run(corpus, "--shards", store, "--resume", "auto", "--set", "training.epochs=3")[0] == 2
    assert "last.ckpt: is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("epochs", [2, 1])
def test_a_finished_run_says_so_and_names_its_best(
    corpus: Corpus, store: Path, here: Path, twice: Path, capsys: pytest.CaptureFixture[str], epochs: int
) -> None:
    before = {path: content for path, content in files(RESULTS).items() if path.suffix == ".ckpt"}
    capsys.readouterr()
    assert run(corpus, "--shards", store, "--set", f"training.epochs={epochs}", "--resume", "last")[0] == 0
    said = capsys.readouterr().err
    assert f"2 epochs trained already, training.epochs is {epochs}; raise it to go on" in said
    assert "best: validation SI-SNR" in said.splitlines()[-1]
    assert "best_model.pth" in said.splitlines()[-1]
    assert "waited for data" not in said
    assert {path: content for path, content in files(RESULTS).items() if path.suffix == ".ckpt"} == before


def test_what_slurms_requeue_left_is_not_taken_up_unasked(
    corpus: Corpus, store: Path, here: Path, once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (RESULTS / "last.ckpt").rename(RESULTS / "hpc_ckpt_1.ckpt")
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")
    assert run(corpus, "--shards", store, *FIRST)[0] == 0
    assert last()["global_step"] == 5


def test_results_go_where_exp_dir_says(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(here / "scratch"))
    assert run(corpus, "--shards", store, "--exp_dir", "$SCRATCH/runs", *FIRST)[0] == 0
    assert (here / "scratch/runs/checkpoint/tiny/best_model.pth").exists()
    assert [path.name for path in here.iterdir()] == ["scratch"]
    assert run(corpus, "--shards", store, "--exp_dir", "$SCRATCH/runs", *EPOCHS, "--resume", "last")[0] == 0


@pytest.mark.parametrize("words", [(), ("--compare_modes", "1")])
def test_a_place_that_takes_no_results_is_refused_before_the_work(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    (here / "file").write_bytes(b"")
    assert run(corpus, "--shards", store, "--exp_dir", "file", *words)[0] == 2
    message = capsys.readouterr().err
    assert "results cannot be written there: Not a directory" in message
    assert "--exp_dir DIR" in message
    assert [path.name for path in here.iterdir()] == ["file"]


def test_an_earlier_run_that_cannot_be_moved_aside_is_kept_and_the_new_one_refused(
    corpus: Corpus,
    store: Path,
    here: Path,
    once: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    before = files(RESULTS)
    monkeypatch.setattr(Path, "rename", refuse)
    assert run(corpus, "--shards", store)[0] == 2
    said = " ".join(capsys.readouterr().err.split())
    folder = RESULTS.absolute()
    assert f"error: {folder}: holds an earlier run, which cannot be moved to {folder}-before-" in said
    assert ": Device or resource busy. Resume it with --resume last, move it yourself, or give this one" in said
    assert "--set exp.exp_name=NAME" in said
    assert files(RESULTS) == before


def test_a_disk_that_fills_up_ends_the_run_with_a_sentence_and_without_fragments(
    corpus: Corpus, store: Path, here: Path
) -> None:
    """A limit on the size of files stands for the disk: a checkpoint is larger, conf.yml and logs are not."""
    words = ["--conf_dir", str(corpus.config_file), "--shards", str(store), *FIRST]
    command = 'ulimit -f 64; exec "$0" "$@"'
    ended = subprocess.run(
        ["bash", "-c", command, sys.executable, str(TRAIN), *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr[-2000:]
    assert "epoch=0.ckpt: cannot be written: File too large" in ended.stderr
    assert "then try again; a training resumes with --resume last" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(RESULTS.glob("*.partial"))
    assert not list(RESULTS.glob("*.ckpt"))


def spoil_loops(checkpoint: dict[str, Any]) -> None:
    checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] = "many"


def spoil_rate(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] = "high"


def spoil_moment(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)


def spoil_schedule(checkpoint: dict[str, Any]) -> None:
    checkpoint["separation_scheduler"]["step"] = 5  # a method's name


def spoil_early_stopping(checkpoint: dict[str, Any]) -> None:
    (state,) = checkpoint["callbacks"].values()
    state["best_score"] = "good"


def spoil_version(checkpoint: dict[str, Any]) -> None:
    checkpoint["pytorch-lightning_version"] = [2]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_loops, "loops.epoch_loop.batch_progress.total.ready: found 'many' (str), expected 0 (int)"),
        (spoil_rate, "optimizer.0.lr: found 'high' (str), expected 0.001 (float)"),
        (spoil_moment, "optimizer.0.exp_avg: found the shape (3,), expected"),
        (spoil_schedule, "scheduler: found the keys"),
        (spoil_early_stopping, "could not convert string to float"),
        (spoil_version, "cannot be restored"),
    ],
)
def test_states_that_do_not_fit_are_refused_before_the_first_step(
    corpus: Corpus,
    store: Path,
    here: Path,
    once: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[dict[str, Any]], None],
    said: str,
) -> None:
    checkpoint = torch.load(once / "last.ckpt", weights_only=True)
    spoil(checkpoint)
    torch.save(checkpoint, once / "last.ckpt")
    before = (once / "last.ckpt").read_bytes()
    assert run(corpus, "--shards", store, *EPOCHS, "--resume", "last")[0] == 2
    message = capsys.readouterr().err
    assert "last.ckpt: what it holds cannot be restored: " in message
    assert said in message
    assert "Give another checkpoint of the run, or start a new one without --resume" in message
    assert (once / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_checkpoint_is_not_blamed_where_memory_ran_out(
    corpus: Corpus, store: Path, here: Path, once: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error("no memory is left")

    monkeypatch.setattr(SeparationModule, "on_load_checkpoint", fail)
    with pytest.raises(error, match="no memory is left"):
        train_cli.main(["--conf_dir", str(corpus.config_file), "--shards", str(store), *EPOCHS, "--resume", "last"])
