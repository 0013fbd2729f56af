"""evaluate.py: figures of every example, once, from a store or raw, whole or cut, resumed or not."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from helpers.commands import run_main
from helpers.corpus import Corpus, copy_corpus, make_corpus
from helpers.runs import ROOT, build_store

from iianet.encoder.lazy_encoder import LazyEncoder
from iianet.inference import scoring
from iianet.inference.trained import open_trained
from iianet_cli import evaluate_cli
from shardwriter import open_store
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.corpus.embedding_npz import write_embedding_npz
from shardwriter.storage.folder import Folder

LENGTHS = {"t0_t1": 5, "t1_t2": 8, "t2_t3": 4, "t3_t4": 4, "t4_t5": 5}
"""Mixture -> frames."""


def evaluate(corpus: Corpus, checkpoint: Path, *words: object) -> int:
    """Run the command in this process, with its results in `out`; returns the exit code."""
    command = ["--conf_dir", corpus.config_file, "--checkpoint", checkpoint, "--out", "out", *words]
    with pytest.raises(SystemExit) as stopped:
        evaluate_cli.main([str(word) for word in command])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def rows(folder: str = "out") -> list[dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def summary() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/summary.json").read_text())
    return found


def short(mixture: str) -> str:
    """`t0_1.00_t1_-1.00.wav` -> `t0_t1`."""
    return "_".join(part for part in Path(mixture).stem.split("_") if part.startswith("t"))


def si_snr(estimate: np.ndarray, target: np.ndarray) -> float:
    estimate, target = estimate - estimate.mean(), target - target.mean()
    projected = target * (estimate @ target) / (target @ target)
    return float(10 * np.log10(np.sum(projected**2) / np.sum((estimate - projected) ** 2)))


@torch.inference_mode()
def by_hand(corpus: Corpus, store: Path, checkpoint: Path, row: dict[str, str], frames: int) -> tuple[float, float]:
    """SI-SNR and SI-SNRi of an example, computed alone."""
    mixture, target = (
        soundfile.read(corpus.root / row[kind], dtype="float32")[0][: 640 * frames] for kind in ("mixture", "target")
    )
    embedding = torch.from_numpy(np.array(open_store(store, "test")[row["key"]].embedding))[:, :frames]
    estimate = open_trained(checkpoint).model(torch.from_numpy(mixture)[None], embedding[None])[0, 0].double().numpy()
    own = si_snr(estimate, target.astype(float))
    return own, own - si_snr(mixture.astype(float), target.astype(float))


@pytest.mark.parametrize("segment", [None, "full"])
def test_every_example_is_evaluated_once_as_by_hand(
    corpus: Corpus,
    store: Path,
    checkpoint: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    pictures: None,
    segment: str | None,
) -> None:
    words = ["--segment", segment] if segment else []
    assert evaluate(corpus, checkpoint, "--shards", store, *words) == 0
    found = rows()
    assert len({(row["key"], row["mixture"], row["target"]) for row in found}) == len(found) == 10
    for row in found:
        frames = LENGTHS[short(row["mixture"])] if segment else 4
        assert float(row["seconds"]) == pytest.approx(frames / 25)
        expected = by_hand(corpus, store, checkpoint, row, frames)
        assert (float(row["si_snr"]), float(row["si_snri"])) == pytest.approx(expected, abs=1e-3)
    mean = np.mean([float(row["si_snri"]) for row in found])
    assert summary()["figures"]["si_snri"] == {
        "mean": pytest.approx(mean),
        "std": pytest.approx(np.std([float(row["si_snri"]) for row in found], ddof=1)),
        "median": pytest.approx(np.median([float(row["si_snri"]) for row in found])),
        "number": 10,
    }
    table = capsys.readouterr().out
    assert "SI-SNRi (dB)" in table
    assert "10 of 10 examples evaluated" in table
    assert Path("out/si_snri.png").read_bytes().startswith(b"\x89PNG")


def test_raw_mouths_give_the_figures_of_a_store(corpus: Corpus, store: Path, checkpoint: Path, here: Path) -> None:
    assert evaluate(corpus, checkpoint, "--shards", store, "--segment", "full") == 0
    stored = {row["target"]: float(row["si_snr"]) for row in rows()}
    Path("out").rename("stored")
    assert evaluate(corpus, checkpoint, "--no_shards", "--segment", "full") == 0
    assert {row["target"]: float(row["si_snr"]) for row in rows()} == pytest.approx(stored, abs=1e-3)


@pytest.mark.slow
def test_a_published_file_is_evaluated_with_the_rows_of_the_crop_that_the_config_names(
    corpus: Corpus, checkpoint: Path, here: Path
) -> None:
    rows_seen = "videonet.videonet_config.crop_rows"
    contents = torch.load(checkpoint, weights_only=True)
    torch.save({"state_dict": contents["state_dict"]}, "published.pth")  # which does not say what it was shown
    store = build_store(corpus, "fifty", None, f"{rows_seen}=50")
    figures: dict[str, dict[str, float]] = {}
    for name, words in {"88": ["--no_shards"], "50": ["--no_shards"], "stored": ["--shards", store]}.items():
        count = 88 if name == "88" else 50
        assert evaluate(corpus, Path("published.pth"), *words, "--set", f"{rows_seen}={count}") == 0
        figures[name] = {row["target"]: float(row["si_snr"]) for row in rows()}
        Path("out").rename(name)
    assert figures["stored"] == pytest.approx(figures["50"], abs=1e-3)
    assert figures["88"] != pytest.approx(figures["50"], abs=1e-3)
    assert evaluate(corpus, Path("published.pth"), "--no_shards", "--out", "50") == 2  # never resumed with other rows


def test_a_complete_store_needs_no_encoder(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr(LazyEncoder, "_on", load)
    assert evaluate(corpus, checkpoint, "--shards", store) == 0
    with pytest.raises(AssertionError, match="the encoder was loaded"):
        evaluate(corpus, checkpoint, "--no_shards", "--out", "raw")


def test_examples_shorter_than_the_segment_are_left_out_and_listed(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(corpus, checkpoint, "--shards", store, "--segment", "0.2") == 0
    assert {short(row["mixture"]) for row in rows()} == {"t0_t1", "t1_t2", "t4_t5"}
    assert len(summary()["too_short"]) == 4
    assert "4 shorter than the segment, left out: audio/tt/mix/t2_1.00_t3_-1.00.wav" in capsys.readouterr().out


def test_what_cannot_be_read_is_listed_and_is_in_no_mean(
    corpus: Corpus, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copy_corpus(corpus, here / "broken")
    (broken.root / "audio/tt/s1/t1_1.00_t2_-1.00.wav").write_bytes(b"no wav")
    assert evaluate(broken, checkpoint, "--no_shards") == 3
    assert len(rows()) == summary()["figures"]["si_snri"]["number"] == 9
    (name, reason) = next(iter(summary()["unreadable"].items()))
    assert name.startswith("t1, ")
    assert "t1_1.00_t2_-1.00.wav" in reason
    assert "1 could not be read" in capsys.readouterr().out


def test_an_interrupted_evaluation_resumes_with_what_is_left(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(corpus, checkpoint, "--shards", store, "--segment", "full") == 0
    whole, figures = Path("out/metrics.csv").read_bytes(), summary()
    Path("out/metrics.csv").write_bytes(b"".join(whole.splitlines(keepends=True)[:5]) + b"t9,cut")
    separated = []
    real = evaluate_cli.estimates
    monkeypatch.setattr(evaluate_cli, "estimates", lambda *all: separated.append(len(all[2])) or real(*all))
    assert evaluate(corpus, checkpoint, "--shards", store, "--segment", "full") == 0
    assert sum(separated) == 6
    again = {row["target"]: row for row in rows()}
    assert len(again) == len(rows()) == 10
    Path("out/metrics.csv").write_bytes(whole)
    for row in rows():
        assert float(again[row["target"]]["si_snr"]) == pytest.approx(float(row["si_snr"]), abs=1e-4)
    assert summary()["figures"]["sdri"] == pytest.approx(figures["figures"]["sdri"], abs=1e-4)


def test_saved_examples_are_to_be_heard_and_seen(corpus: Corpus, store: Path, checkpoint: Path, here: Path) -> None:
    words = ["--shards", store, "--segment", "full", "--save", 1]
    assert evaluate(corpus, checkpoint, *words) == 0
    assert evaluate(corpus, checkpoint, *words) == 0, "once more, from the record alone"
    folders = sorted(Path("out/examples").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == [*("best-1", "median-1", "worst-1")]
    ranked = sorted(rows(), key=lambda row: -float(row["si_snri"]))
    assert folders[0].name == f"best-1-{ranked[0]['key']}"
    assert folders[2].name == f"worst-1-{ranked[-1]['key']}"
    expected, _ = soundfile.read(corpus.root / ranked[0]["target"])
    heard, rate = soundfile.read(folders[0] / "target.wav")
    assert rate == 16000
    assert np.corrcoef(heard, expected)[0, 1] > 0.999
    estimate, _ = soundfile.read(folders[0] / "estimate.wav")
    assert si_snr(estimate, expected) == pytest.approx(float(ranked[0]["si_snr"]), abs=0.1)
    assert (folders[0] / "spectrograms.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "audionet.audionet_config.num_blocks=3"], "was trained with audionet.audionet_config.num_blocks="),
        (["--metrics", "si_snr,snr"], "--metrics: found 'snr', expected some of si_snr, sdr, pesq, stoi"),
        (["--segment", "-1"], "--segment: found '-1', expected seconds above 0, or full"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth: no such weights file"),
        (["--segment", "9"], "none of its 10 examples is as long as the segment of 9 s"),
        (["--shards", "a-{000..002}.tar"], "tars without a store"),
        (
            ["--metrics", "sdr", "--save", "2"],
            "--save 2: examples are chosen by their SI-SNRi; add si_snr",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    corpus: Corpus, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert evaluate(corpus, checkpoint, *words) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_another_checkpoint_does_not_mix_with_a_record(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(corpus, checkpoint, "--shards", store) == 0
    contents = torch.load(checkpoint, weights_only=True)
    contents["state_dict"]["bottleneck.bias"] += 1
    torch.save(contents, here / "other.pth")
    assert evaluate(corpus, here / "other.pth", "--shards", store) == 2
    assert "holds another evaluation, of which checkpoint is" in capsys.readouterr().err


def other_rounds(corpus: Corpus, checkpoint: Path, folder: Path) -> tuple[list[object], list[object]]:
    """A published file does not say how often its separator iterates: the config does."""
    contents = torch.load(checkpoint, weights_only=True)
    del contents["infos"]
    torch.save(contents, folder / "published.pth")
    rounds = "audionet.audionet_config.num_blocks"
    words = ["--no_shards", "--checkpoint", folder / "published.pth", "--set"]
    return [*words, f"{rounds}=2"], [*words, f"{rounds}=1"]


def other_arithmetic(corpus: Corpus, checkpoint: Path, folder: Path) -> tuple[list[object], list[object]]:
    precision = "videonet.videonet_config.precision"
    return ["--no_shards"], ["--no_shards", "--set", f"{precision}=bf16"]


def other_length(corpus: Corpus, checkpoint: Path, folder: Path) -> tuple[list[object], list[object]]:
    return ["--no_shards", "--segment", "0.1200001"], ["--no_shards", "--segment", "0.12007"]


def other_imports(corpus: Corpus, checkpoint: Path, folder: Path) -> tuple[list[object], list[object]]:
    """Nothing records which encoder made an earlier tool's embeddings."""
    stores = []
    for number in (1, 2):
        copy = copy_corpus(corpus, folder / f"imported{number}")
        for mouth in copy.names["test"]:
            frames = len(np.load(copy.mouth(mouth))["data"])
            made = np.random.default_rng(number).standard_normal((512, frames)).astype(np.float32)
            write_embedding_npz(copy.mouth(mouth).with_name(f"{mouth}_embedding.npz"), made)
        options = BuildOptions(device=torch.device("cpu"), splits=("test",), import_embeddings=True)
        build(copy.config(), Folder(folder / f"store{number}"), options)
        stores.append(folder / f"store{number}")
    return tuple(["--trust_imported", "--shards", store] for store in stores)  # type: ignore[return-value]


def other_stores(corpus: Corpus, checkpoint: Path, folder: Path) -> tuple[list[object], list[object]]:
    """One encoder, whose arithmetic differs."""
    stores = []
    for precision in ("float32", "bf16"):
        config = corpus.config(f"videonet.videonet_config.precision={precision}")
        build(config, Folder(folder / precision), BuildOptions(device=torch.device("cpu"), splits=("test",)))
        stores.append(["--shards", folder / precision])
    return stores[0], stores[1]


@pytest.mark.parametrize("change", [other_rounds, other_arithmetic, other_length, other_imports, other_stores])
def test_whatever_changes_figures_never_resumes(
    corpus: Corpus, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str], change: Any
) -> None:
    one, other = change(corpus, checkpoint, here)
    assert evaluate(corpus, checkpoint, *one) == 0
    assert evaluate(corpus, checkpoint, *one) == 0
    assert evaluate(corpus, checkpoint, *other) == 2
    assert "holds another evaluation, of which " in capsys.readouterr().err


def test_a_config_that_mixes_apart_in_training_is_evaluated(corpus: Corpus, checkpoint: Path, here: Path) -> None:
    apart = ["datamodule.data_config.mix_apart=video", "datamodule.data_config.utterance_names=(?P<video>[^/]+)$"]
    assert evaluate(corpus, checkpoint, "--no_shards", "--set", *apart) == 0


def test_what_is_to_be_skipped_is_counted_and_is_no_failure(
    corpus: Corpus, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build_store(corpus, "some", 4)
    words = ["--shards", store, "--on_missing", "skip"]
    assert evaluate(corpus, checkpoint, *words) == 0
    found = capsys.readouterr()
    skipped = summary()["skipped"]
    assert 0 < skipped == 10 - len(rows())
    assert f"{skipped} not in the store, left out: --on_missing is skip" in found.out
    assert "left out: /" not in found.err, "no line for each of them"
    assert evaluate(corpus, checkpoint, "--shards", store, "--on_missing", "error", "--out", "strict") == 2


def test_the_config_beside_the_checkpoint_is_taken_where_none_is_given(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "best_model.pth").write_bytes(checkpoint.read_bytes())
    words = ["--checkpoint", here / "best_model.pth", "--shards", store]
    alone = run_main(evaluate_cli.main, words, capsys)
    assert alone.code == 2
    assert "no conf.yml lies beside it" in alone.err
    (here / "conf.yml").write_bytes(corpus.config_file.read_bytes())
    assert run_main(evaluate_cli.main, words, capsys).code == 0
    assert len(rows("results/test-0.16s")) == 10


def test_weights_that_diverged_are_an_error_not_a_table(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = torch.load(checkpoint, weights_only=True)
    contents["state_dict"]["bottleneck.bias"].fill_(torch.nan)
    torch.save(contents, here / "diverged.pth")
    assert evaluate(corpus, here / "diverged.pth", "--shards", store) == 2
    assert "its weights diverged or are damaged" in capsys.readouterr().err


def test_no_store_is_made_where_one_is_only_read(
    corpus: Corpus, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--shards", "misspelt", "--set", "datamodule.data_config.build_missing=true"]
    assert evaluate(corpus, checkpoint, *words) == 2
    assert not Path("misspelt").exists()
    assert "misspelt" in capsys.readouterr().err


def test_a_length_off_the_frames_spans_its_last_frame(checkpoint: Path, here: Path) -> None:
    """As separate.py hears it."""
    odd = make_corpus(here / "odd", {"train": 2, "val": 2, "test": {"a": 8, "b": 8}}, frames=8, num_samples=4780)
    store = build_store(odd, "full")
    assert evaluate(odd, checkpoint, "--shards", store, "--segment", "full") == 0
    for row in rows():
        assert float(row["seconds"]) == pytest.approx(4780 / 16000, abs=1e-6)
        expected, _ = by_hand(odd, store, checkpoint, row, 8)
        assert float(row["si_snr"]) == pytest.approx(expected, abs=1e-3)


def test_a_folder_that_cannot_be_written_to_is_told(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").write_bytes(b"a file")
    assert evaluate(corpus, checkpoint, "--shards", store) == 2
    assert "out: cannot be written to: " in capsys.readouterr().err


def test_too_little_memory_of_a_gpu_is_told_with_the_cure(
    corpus: Corpus,
    store: Path,
    checkpoint: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluate_cli, "estimates", full)
    assert evaluate(corpus, checkpoint, "--shards", store) == 2
    assert "do not fit into the memory of the GPU, 2 at a time; lower --set" in capsys.readouterr().err


def test_a_broken_row_ends_it_where_nothing_may_be_missing(
    corpus: Corpus, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copy_corpus(corpus, here / "broken")
    (broken.root / "audio/tt/s1/t1_1.00_t2_-1.00.wav").write_bytes(b"no wav")
    assert evaluate(broken, checkpoint, "--no_shards", "--on_missing", "error") == 2
    assert "t1: cannot be read, and --on_missing is error" in capsys.readouterr().err


def test_a_process_of_figures_that_is_ended_is_told(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel ends one where memory runs out; here it is the first to ask for a figure that finds it so."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    assert pool.submit(int).result() == 0
    for process in pool._processes.values():
        process.kill()
        process.join()
    monkeypatch.setattr(scoring, "ProcessPoolExecutor", lambda *_, **__: pool)
    monkeypatch.setattr(scoring, "PACKAGES", {"sdr": "takes long"})
    assert evaluate(corpus, checkpoint, "--shards", store) == 2


@pytest.mark.slow
def test_slow_metrics_in_other_processes_are_those_of_this_one(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(corpus, checkpoint, "--shards", store) == 0
    alone = rows()
    monkeypatch.setattr(scoring, "PACKAGES", {"sdr": "takes long"})
    assert evaluate(corpus, checkpoint, "--shards", store, "--out", "processes") == 0
    assert rows("processes") == alone


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pesq") is None, reason="needs the extra [metrics]")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_without_a_traceback_and_it_resumes(
    corpus: Corpus, store: Path, checkpoint: Path, here: Path, number: signal.Signals
) -> None:
    words = ["--conf_dir", corpus.config_file, "--checkpoint", checkpoint, "--shards", store, "--out", "out"]
    words += ["--metrics", "si_snr,pesq"]
    command = [sys.executable, str(ROOT / "evaluate.py"), *map(str, words)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not Path("out/metrics.csv").exists():
        assert started.poll() is None, started.stderr.read() if started.stderr else ""
        time.sleep(0.01)
    os.killpg(started.pid, number)  # as a terminal does it: to the processes of the pool, too
    _, said = started.communicate(timeout=60)
    assert started.returncode == 128 + number
    assert "Traceback" not in said
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert len(rows()) == 10
