"""What a finished run leaves in its folder."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.builds import build_store, quick_encoder
from helpers.corpus import Corpus, make_corpus
from helpers.runs import EPOCHS, last, losses, run

from iianet.checkpoint import export_published, load_published, read_checkpoint
from iianet.config.reference import reference_config
from iianet.config.schema import load_config
from iianet.separator.model import IIANet


def test_a_run_leaves_its_results(corpus: Corpus, store: Path, here: Path, pictures: None) -> None:
    code, folder = run(corpus, "--shards", store, *EPOCHS)
    assert code == 0
    best = json.loads((folder / "best_k_models.json").read_text())
    assert sorted(best) == ["epoch=0.ckpt", "epoch=1.ckpt"], "names in its folder, which may be moved"
    assert min(best.values()) == pytest.approx(min(val for _, val in losses(folder)), rel=1e-6)
    assert (folder / "loss_curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(here.glob("Experiments/checkpoint/tiny/csv/*/metrics.csv"))
    saved = load_config(folder / "conf.yml")
    assert saved.main_args["conf_dir"] == str(corpus.config_file)
    assert saved.datamodule.data_config.shards == str(store)
    assert (folder / "conf_reference.yml").read_text() == reference_config(saved)
    assert load_config(folder / "conf_reference.yml").audionet == saved.audionet, "ours reads it too"


def test_best_model_is_the_best_checkpoint_under_published_names(corpus: Corpus, store: Path, here: Path) -> None:
    _, folder = run(corpus, "--shards", store, *EPOCHS)
    best = json.loads((folder / "best_k_models.json").read_text())
    state = torch.load(folder / min(best, key=best.__getitem__), weights_only=True)["state_dict"]
    model = IIANet(**corpus.config().audionet.audionet_config.model_dump())
    load_published(model, read_checkpoint(folder / "best_model.pth"))
    assert export_published(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"model.{name}"]), name


def test_the_validation_mean_weights_examples_not_batches(corpus: Corpus, store: Path, here: Path) -> None:
    """4 validation examples in batches of 3 and 1."""
    found = {}
    for size in (3, 4):
        _, folder = run(
            corpus, "--shards", store, "--set", f"datamodule.data_config.batch_size={size}", "optimizer.lr=0.0"
        )
        found[size] = losses(folder)[0][1]
    assert found[3] == pytest.approx(found[4], rel=1e-5)


def test_early_stop_ends_a_run_that_does_not_improve(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = ["--set", "optimizer.lr=0.0", "training.early_stop.patience=2", "training.epochs=9"]
    _, folder = run(corpus, "--shards", store, *flat)
    history, said = last(folder)["history"], capsys.readouterr().err
    assert len(history) == 3
    best = -history[0]["val_loss"]
    assert f"early stop: validation SI-SNR was not above {best:.2f} dB in the last 2 validations" in said
    assert "improved" not in said, "Lightning's own words, of the loss and thus of the other sign"


def test_a_run_that_diverges_is_an_error(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = run(corpus, "--shards", store, "--set", "optimizer.lr=1e30", *EPOCHS)
    assert code == 1
    assert "diverged" in capsys.readouterr().err
    assert not (folder / "best_model.pth").exists()


def test_training_on_nothing_is_an_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(here / "corpus", frames=5)
    with quick_encoder():
        build_store(corpus, here / "store", splits=("val",))
        code, folder = run(corpus, "--shards", here / "store", "--on_missing", "skip")
    assert code == 1
    assert "none of its examples could be read" in capsys.readouterr().err
    assert not (folder / "best_model.pth").exists()
    for name in corpus.names["train"]:
        corpus.mouth(name).write_bytes(b"broken")
    assert run(corpus)[0] == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "train: none of the first 6 npz can be used" in said and "not a complete npz" in said
    for name in corpus.names["train"]:
        corpus.mouth(name).unlink()
    assert run(corpus)[0] == 2
    assert "none of the first 6 npz can be used" in capsys.readouterr().err


def test_a_new_run_moves_an_earlier_one_aside(corpus: Corpus, store: Path, here: Path) -> None:
    _, folder = run(corpus, "--shards", store)
    first = (folder / "best_model.pth").read_bytes()
    run(corpus, "--shards", store, "--set", "training.seed=1")
    (kept,) = Path("Experiments/checkpoint").glob("tiny-before-*")
    assert (kept / "best_model.pth").read_bytes() == first
    assert (folder / "best_model.pth").read_bytes() != first


def test_requested_devices_that_do_not_exist_are_reported(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run(corpus, "--shards", store, "--set", "training.gpus=[0,1]")[0] == 0
    assert "asks for [0, 1]; found 0 GPUs on this machine, using the CPU" in capsys.readouterr().err


def test_rows_that_were_skipped_are_counted_and_some_of_them_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = make_corpus(here / "many", {"train": 24, "val": 2}, frames=5)
    sources = sorted((many.root / "audio" / "tr" / "s1").glob("*.wav"))
    for wav in sources[: len(sources) - 4]:
        wav.write_bytes(b"no wav")
    run(many, "--no_shards", "--set", "datamodule.data_config.train_mixing=static")
    said = capsys.readouterr().err
    assert re.search(r"epoch 0: skipped \d+ rows \(\w+, \w+, \w+, \w+, \w+ and \d+ more utterances\)", said), said
