"""train.py, as a user runs it, on a tiny corpus."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import Corpus, make_corpus

import train
from configs.schema import load_config
from iianet.batch import Batch
from iianet.checkpoint import export_published, load_published, read_checkpoint
from iianet.encoder_source import EncoderSource
from iianet.lightning_module import SeparationModule
from iianet.model import IIANet
from iianet.video_encoder import VideoEncoder
from shardwriter.build import BuildOptions, build

EPOCHS = ("--set", "training.epochs=2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"train": 6, "val": 3, "test": 2}, frames=5)


@pytest.fixture(scope="module")
def store(corpus: Corpus) -> Path:
    return build_store(corpus, "full")


def build_store(corpus: Corpus, name: str, limit: int | None = None, *overrides: str) -> Path:
    path = corpus.root / name
    options = BuildOptions(device=torch.device("cpu"), dtype="float32", limit=limit)
    build(corpus.config(*overrides), path, options)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: results go to Experiments below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(corpus: Corpus, *words: object) -> tuple[int, Path]:
    """Exit code and folder of the results."""
    with pytest.raises(SystemExit) as stopped:
        train.main(["--conf_dir", str(corpus.config_file), *(str(word) for word in words)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, Path("Experiments/checkpoint/tiny")


def last(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)
    return found


def losses(folder: Path) -> list[tuple[float, float]]:
    return [(row["train_loss"], row["val_loss"]) for row in last(folder)["history"]]


def test_a_run_leaves_its_results(corpus: Corpus, store: Path, here: Path) -> None:
    code, folder = run(corpus, "--shards", store, *EPOCHS)
    assert code == 0
    best = json.loads((folder / "best_k_models.json").read_text())
    assert sorted(Path(path).name for path in best) == ["epoch=0.ckpt", "epoch=1.ckpt"]
    assert min(best.values()) == pytest.approx(min(val for _, val in losses(folder)), rel=1e-6)
    assert (folder / "loss_curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(here.glob("Experiments/checkpoint/tiny/csv/*/metrics.csv"))
    saved = load_config(folder / "conf.yml")
    assert saved.main_args["conf_dir"] == str(corpus.config_file)
    assert saved.datamodule.data_config.shards == str(store)


def test_best_model_is_the_best_checkpoint_under_published_names(corpus: Corpus, store: Path, here: Path) -> None:
    _, folder = run(corpus, "--shards", store, *EPOCHS)
    best = json.loads((folder / "best_k_models.json").read_text())
    state = torch.load(min(best, key=best.__getitem__), weights_only=True)["state_dict"]
    model = IIANet(**corpus.config().audionet.audionet_config.model_dump())
    load_published(model, read_checkpoint(folder / "best_model.pth"))
    assert export_published(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"model.{name}"]), name


def test_raw_mode_is_the_default_and_equals_a_store(corpus: Corpus, store: Path, here: Path) -> None:
    plain = "datamodule.data_config.augment_mouth=false"
    _, folder = run(corpus, *EPOCHS, plain)
    raw = losses(folder)
    assert not load_config(folder / "conf.yml").datamodule.data_config.use_precomputed_embeddings
    _, folder = run(corpus, "--shards", store, *EPOCHS)
    assert losses(folder) == [pytest.approx(row, rel=1e-4) for row in raw]


def test_raw_mode_trains_with_augmentation(corpus: Corpus, here: Path) -> None:
    _, folder = run(corpus, *EPOCHS)
    augmented = losses(folder)
    _, folder = run(corpus, *EPOCHS, "datamodule.data_config.augment_mouth=false")
    assert losses(folder) != [pytest.approx(row, rel=1e-4) for row in augmented]


def test_what_the_store_lacks_is_encoded_in_the_step_with_equal_losses(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run(corpus, "--shards", store, *EPOCHS)
    full = losses(folder)
    capsys.readouterr()
    partial = build_store(corpus, "partial", 4)
    _, folder = run(corpus, "--shards", partial, *EPOCHS)
    assert losses(folder) == [pytest.approx(row, rel=1e-4) for row in full]
    said = capsys.readouterr().err
    assert said.count("2 of 6 utterances are not in") == 1
    assert f"build-shards --conf_dir {corpus.config_file} --data_split all --shards {partial}" in said


def test_with_nothing_missing_the_encoder_is_not_loaded(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EncoderSource, "load", lambda *_: pytest.fail("the encoder was loaded"))
    assert run(corpus, "--shards", store)[0] == 0


def test_the_encoder_neither_learns_nor_drifts_nor_lands_in_checkpoints(
    corpus: Corpus, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[VideoEncoder] = []
    load = EncoderSource.load

    def keep(source: EncoderSource, device: torch.device) -> VideoEncoder:
        loaded.append(load(source, device))
        return loaded[-1]

    monkeypatch.setattr(EncoderSource, "load", keep)
    _, folder = run(corpus)
    assert len(loaded) == 1
    fresh = load(EncoderSource.from_config(corpus.config()), torch.device("cpu"))
    assert not loaded[0].training
    assert loaded[0].fingerprint() == fresh.fingerprint()
    assert all(name.startswith("model.") or "mean" in name for name in last(folder)["state_dict"])


def test_a_resumed_run_goes_on_where_it_stopped(corpus: Corpus, store: Path, here: Path) -> None:
    run(corpus, "--shards", store, *EPOCHS)
    code, folder = run(corpus, "--shards", store, "--set", "training.epochs=4", "--resume", "last")
    assert code == 0
    assert [row["epoch"] for row in last(folder)["history"]] == [0, 1, 2, 3]
    assert last(folder)["global_step"] == 4 * 5  # 10 examples in batches of 2


def test_a_new_run_moves_an_earlier_one_aside(corpus: Corpus, store: Path, here: Path) -> None:
    _, folder = run(corpus, "--shards", store)
    first = (folder / "best_model.pth").read_bytes()
    run(corpus, "--shards", store, "--set", "training.seed=1")
    (kept,) = Path("Experiments/checkpoint").glob("tiny-before-*")
    assert (kept / "best_model.pth").read_bytes() == first
    assert (folder / "best_model.pth").read_bytes() != first


def test_the_command_line_wins_over_the_config(corpus: Corpus, store: Path, here: Path) -> None:
    named = [
        "--set",
        f"datamodule.data_config.shards={store}",
        "datamodule.data_config.use_precomputed_embeddings=true",
    ]
    run(corpus, *named)
    assert Path("Experiments/checkpoint/tiny/conf.yml").read_text().count("use_precomputed_embeddings: true") == 1
    _, folder = run(corpus, "--no_shards", *named)
    assert not load_config(folder / "conf.yml").datamodule.data_config.use_precomputed_embeddings
    _, folder = run(corpus, "--use-precomputed-embeddings", *named[:2])
    assert load_config(folder / "conf.yml").datamodule.data_config.use_precomputed_embeddings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--use_precomputed_embeddings"], "no store is named"),
        (["--shards", "nowhere"], "not a store"),
        (["--resume", "last"], "checkpoints there: none"),
        (["--set", "videonet.videonet_config.pretrain=no.pth"], "no such weights file"),
        (["--set", "datamodule.data_config.n_src=2"], "n_src"),
        (["--set", "training.epoch=2"], "epochs"),
        (["--data_root", "nowhere"], "--data_root"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, _ = run(corpus, *words)
    assert code == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert not list(here.iterdir())


@pytest.mark.parametrize("changed", ["videonet.videonet_config.seed=1"])
def test_a_store_of_another_encoder_is_refused_with_both_fingerprints(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    code, _ = run(corpus, "--shards", store, "--set", changed)
    assert code == 2
    message = capsys.readouterr().err
    cpu = torch.device("cpu")
    for config in (corpus.config(), corpus.config(changed)):
        assert EncoderSource.from_config(config).load(cpu).fingerprint() in message
    assert "--overwrite" in message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("preprocessing", "mean", 0.5), ("precision", "dtype", "bfloat16"), ("precision", "batch_norm", "folded")],
)
def test_a_store_of_other_preprocessing_or_precision_is_refused(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str], section: str, key: str, value: object
) -> None:
    stale = build_store(corpus, f"stale-{section}-{key}")
    record = json.loads((stale / "store.json").read_text())
    record["identity"][section][key] = value
    (stale / "store.json").write_text(json.dumps(record))
    code, _ = run(corpus, "--shards", stale)
    assert code == 2
    assert section in capsys.readouterr().err


def test_weights_saved_again_in_another_file_are_the_same_encoder(corpus: Corpus, here: Path) -> None:
    encoder = EncoderSource.from_config(corpus.config()).load(torch.device("cpu"))
    for name, extra in (("one.pth", {}), ("two.pth", {"epoch": 3})):
        torch.save({"model_state_dict": export_published(encoder), **extra}, name)
    weights = build_store(corpus, "weights", None, f"videonet.videonet_config.pretrain={here / 'one.pth'}")
    assert run(corpus, "--shards", weights, "--set", "videonet.videonet_config.pretrain=two.pth")[0] == 0


def test_on_missing_error_stops_at_an_npz_that_cannot_be_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(here / "corpus", frames=5)
    corpus.mouth("tr_001").write_bytes(b"broken")
    assert run(corpus)[0] == 0
    assert "tr_001: its rows are left out" in capsys.readouterr().err
    code, _ = run(corpus, "--on_missing", "error")
    assert code == 2
    assert "tr_001" in capsys.readouterr().err.splitlines()[-1]


def test_training_on_nothing_is_an_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(here / "corpus", frames=5)
    for name in corpus.names["train"]:
        corpus.mouth(name).write_bytes(b"broken")
    code, folder = run(corpus)
    assert code == 1
    assert "none of its examples could be had" in capsys.readouterr().err
    assert not (folder / "best_model.pth").exists()
    for name in corpus.names["train"]:
        corpus.mouth(name).unlink()
    assert run(corpus)[0] == 2
    assert "none of the first 8 npz exists" in capsys.readouterr().err


def test_a_run_that_diverges_is_an_error(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = run(corpus, "--shards", store, "--set", "optimizer.lr=1e30", *EPOCHS)
    assert code == 1
    assert "diverged" in capsys.readouterr().err
    assert not (folder / "best_model.pth").exists()


def test_sigterm_saves_and_ends_with_its_own_code(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second epoch; what goes on from there ends as if nothing had happened."""
    epochs = ("--set", "training.epochs=3")
    _, folder = run(corpus, "--shards", store, *epochs)
    whole = last(folder)
    step = SeparationModule.training_step

    def interrupted(self: SeparationModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SeparationModule, "training_step", interrupted)
        code, folder = run(corpus, "--shards", store, *epochs)
    assert code == 143
    assert last(folder)["global_step"] == 8
    assert not (folder / "best_model.pth").exists()
    assert run(corpus, "--shards", store, *epochs, "--resume", "last")[0] == 0
    assert last(folder)["history"] == whole["history"]
    for name, value in last(folder)["state_dict"].items():
        assert torch.equal(value, whole["state_dict"][name]), name


def test_sigterm_to_all_processes_of_a_run_saves_too(corpus: Corpus, store: Path, here: Path) -> None:
    """As Slurm sends it: loader workers get it as well."""
    command = [sys.executable, train.__file__, "--conf_dir", corpus.config_file, "--shards", store]
    workers = [
        "--set",
        "training.epochs=10000",
        "training.early_stop.patience=100000",
        "datamodule.data_config.num_workers=1",
    ]
    process = subprocess.Popen([*command, *workers], stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "New best score" in line:  # said after the first epoch
            break
    os.killpg(process.pid, signal.SIGTERM)
    message = process.stderr.read()
    assert process.wait(60) == 143, message[-2000:]
    assert "--resume last" in message
    assert Path("Experiments/checkpoint/tiny/last.ckpt").exists()


@pytest.mark.timeout(240)
def test_two_ranks_train_and_validate_over_all_examples(corpus: Corpus, store: Path, here: Path) -> None:
    """3 of 4 validation examples fall to one rank in batches of 3; the mean is over all, as on one rank."""
    script = here / "two_ranks.py"
    script.write_text("import sys, train\ntrain.choose_devices = lambda _: ('cpu', 2)\ntrain.main(sys.argv[1:])\n")
    settings = ("--shards", str(store), "--set", "optimizer.lr=0.0", "datamodule.data_config.batch_size=3")
    root = Path(train.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, "--conf_dir", corpus.config_file, *settings],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("all 6 utterances are in") == 1
    folder = Path("Experiments/checkpoint/tiny")
    both, steps = losses(folder)[0][1], last(folder)["global_step"]
    assert steps == 10 // 6
    _, folder = run(corpus, *settings)
    assert both == pytest.approx(losses(folder)[0][1], rel=1e-5)


def test_early_stop_ends_a_run_that_does_not_improve(corpus: Corpus, store: Path, here: Path) -> None:
    flat = ["--set", "optimizer.lr=0.0", "training.early_stop.patience=2", "training.epochs=9"]
    _, folder = run(corpus, "--shards", store, *flat)
    assert len(last(folder)["history"]) == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"cut"), "weights file"),
        (lambda path: torch.save({"state_dict": {}}, path), "not a checkpoint of train.py"),
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


def test_values_that_torch_refuses_stop_before_anything_is_written(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", store, "--set", "optimizer.betas=[2.0, 3.0]")[0] == 2
    assert "torch refuses the values" in capsys.readouterr().err
    assert not list(here.iterdir())


def test_wishes_for_devices_that_do_not_exist_are_told(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run(corpus, "--shards", store, "--set", "training.gpus=[0,1]")[0] == 0
    assert "asks for [0, 1]; this machine has 0" in capsys.readouterr().err


def test_the_scheduler_is_stepped_once_an_epoch_and_resumed(corpus: Corpus, store: Path, here: Path) -> None:
    falling = ["--set", "scheduler={sche_name: StepLR, sche_config: {step_size: 1, gamma: 0.5}}"]
    run(corpus, "--shards", store, *falling, *EPOCHS)
    _, folder = run(corpus, "--shards", store, *falling, "--set", "training.epochs=3", "--resume", "last")
    assert [row["lr"] for row in last(folder)["history"]] == pytest.approx([1e-3, 5e-4, 2.5e-4])


def test_the_validation_mean_weights_examples_not_batches(corpus: Corpus, store: Path, here: Path) -> None:
    """4 validation examples in batches of 3 and 1."""
    found = {}
    for size in (3, 4):
        _, folder = run(
            corpus, "--shards", store, "--set", f"datamodule.data_config.batch_size={size}", "optimizer.lr=0.0"
        )
        found[size] = losses(folder)[0][1]
    assert found[3] == pytest.approx(found[4], rel=1e-5)


def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(corpus: Corpus, store: Path, here: Path) -> None:
    _, folder = run(corpus, "--shards", store, "--set", "training.epochs=3")
    whole = last(folder)["state_dict"]
    run(corpus, "--shards", store, "--set", "training.epochs=1")
    run(corpus, "--shards", store, "--set", "training.epochs=3", "--resume", "last")
    for name, value in last(folder)["state_dict"].items():
        assert torch.equal(value, whole[name]), name
