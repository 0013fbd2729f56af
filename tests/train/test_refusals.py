"""What train.py does not start with, and says why."""

from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from helpers.builds import edit_identity, opened
from helpers.corpus import Corpus
from helpers.runs import build_store, run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--use_precomputed_embeddings"], "no store is named"),
        (["--shards", "nowhere"], "not a store"),
        (["--resume", "last"], "checkpoints there: none"),
        (["--set", "videonet.videonet_config.pretrain=no.pth"], "no such weights file"),
        (["--set", "datamodule.data_config.n_src=2"], "n_src"),
        (["--set", "training.epoch=2"], "epochs"),
        (["--set", "training.compile=graphs"], "found 'graphs' (str), expected true, false or cuda_graphs"),
        (["--set", "datamodule.data_config.batch_size=1000"], "do not fill one batch of 1000"),
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
        assert config.encoder_source().load(cpu).fingerprint in message
    assert "--overwrite" in message


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("preprocessing", "mean", 0.5, "preprocessing"),
        ("precision", "dtype", "bfloat16", "precision"),
        ("precision", "batch_norm", "separate", "computed in a way that this version does not have"),
    ],
)
def test_a_store_of_other_preprocessing_or_precision_is_refused(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str], section: str, key: str, value: object, said: str
) -> None:
    stale = build_store(corpus, f"stale-{section}-{key}")
    identity = opened(stale).identity
    edit_identity(stale, replace(identity, **{section: {**getattr(identity, section), key: value}}))
    code, _ = run(corpus, "--shards", stale, "--set", "videonet.videonet_config.precision=float32")
    assert code == 2
    assert said in capsys.readouterr().err


def test_values_that_torch_refuses_stop_before_anything_is_written(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", store, "--set", "optimizer.betas=[2.0, 3.0]")[0] == 2
    assert "torch refuses the values" in capsys.readouterr().err
    assert not list(here.iterdir())


def test_compiling_without_a_compiler_is_refused_before_anything_is_written(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/g++"))
    assert run(corpus, "--shards", store, "--compile")[0] == 2
    message = capsys.readouterr().err
    assert "--compile: torch.compile does not work on cpu" in message
    assert "/nowhere/g++" in message
    assert "Install a C++ compiler" in message
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("device", "settings", "said"),
    [
        ("cpu", [], "--compile cuda_graphs: CUDA graphs need a GPU of NVIDIA, and training runs on cpu; give"),
        ("cuda:0", ["training.checkpoint_activations=true"], "give --compile alone, or set training.checkpoint_activ"),
    ],
)
def test_cuda_graphs_are_refused_where_there_can_be_none(
    corpus: Corpus,
    store: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    settings: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(pl.strategies.SingleDeviceStrategy, "root_device", torch.device(device))
    words = ["--compile", "cuda_graphs", *(["--set", *settings] if settings else [])]
    assert run(corpus, "--shards", store, *words)[0] == 2
    assert said in capsys.readouterr().err
    assert not list(here.iterdir())


def test_a_mask_longer_than_an_example_is_refused(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = "datamodule.data_config.embedding_augmentation.time_mask"
    assert run(corpus, "--shards", store, "--set", f"{setting}=6")[0] == 2
    assert f"{setting} is 6 frames, and an example has 5; expected at most that" in capsys.readouterr().err
    assert not list(here.iterdir())
    assert run(corpus, "--shards", store, "--set", f"{setting}=5")[0] == 0


def test_the_build_command_has_the_flags_that_matter_to_a_build(
    corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = build_store(corpus, "partial", 2)
    data = "datamodule.data_config"
    words = [f"{data}.batch_size=1", f"{data}.key_from=stem", "training.epochs=1", f"{data}.num_workers=0"]
    assert run(corpus, "--shards", partial, "--set", *words)[0] == 0
    (line,) = (
        line for line in capsys.readouterr().err.splitlines() if "build-shards --conf_dir" in line and "train:" in line
    )
    assert f"--set {data}.key_from=stem" in line
    assert "batch_size" not in line
    assert "num_workers" not in line
