"""Runs of --compare_modes come by turns, and are summed up without losing what is slow in them."""

import json
import re
import sys
from pathlib import Path

import pytest
from helpers.corpus import Corpus, make_corpus

from iianet.comparison.comparison_report import save_comparison, table
from iianet.comparison.mode_comparison import Figures, Way, refuse_unfit_comparison, run_ways, ways
from iianet.errors import ConfigError, TrainingError
from iianet.training.step_times import StepRecord

RAW = Way(mode="raw", precision="32-true", compile=False)
STORE = Way(mode="store", precision="32-true", compile=False)
SCRIPT = """
import json, sys
from pathlib import Path
flags = sys.argv[sys.argv.index("--conf_dir") + 2 :]
with open({log!r}, "a") as log:
    log.write(json.dumps(flags[: flags.index("--record_steps")]) + "\\n")
if {fails!r} in flags:
    sys.exit(3)
steps = int(flags[flags.index("--record_steps") + 1])
times = {{"seconds": [0.1] * steps, "waited": [0.0] * steps}}
counts = {{"examples": 2 * steps, "bytes_read": steps, "epoch_steps": 7, "peak_bytes": 5}}
Path(flags[-1]).write_text(json.dumps({{"device": "CPU", **times, **counts}}))
"""
"""Stands in for the training command: notes its flags, and leaves a record."""


def record(seconds: tuple[float, ...], waited: tuple[float, ...], **changes: int) -> StepRecord:
    counts = {"examples": 4 * len(seconds), "bytes_read": 100, "epoch_steps": 10, "peak_bytes": 10**9, **changes}
    return StepRecord(device="CPU", seconds=seconds, waited=waited, **counts)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus")


def script(tmp_path: Path, fails: str = "") -> tuple[Path, Path]:
    path, log = tmp_path / "script.py", tmp_path / "log"
    path.write_text(SCRIPT.format(log=str(log), fails=fails))
    return path, log


def test_figures_are_of_all_rounds_together() -> None:
    """A round of slow steps counts by its time, and the slowest step of ten is beyond the p90."""
    one = record((0.1,) * 9 + (1.1,), (0.0,) * 9 + (1.0,), bytes_read=300)
    other = record((0.3,) * 10, (0.1,) * 10, bytes_read=100, peak_bytes=3)
    figures = Figures.of(STORE, [one, other])
    assert figures.examples_per_second == pytest.approx(80 / 5)
    assert figures.rounds == pytest.approx((20, 40 / 3))
    assert figures.median_seconds == pytest.approx(0.3)
    assert figures.p90_seconds == pytest.approx(0.3)
    assert figures.wait_share == pytest.approx(2 / 5)
    assert figures.peak_bytes == 10**9
    assert figures.epoch_bytes == pytest.approx(10 * 400 / 20)


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ([], ["32-true"]),
        (["training.precision=bf16-mixed"], ["32-true", "bf16-mixed"]),
        (["training.compile=true"], ["32-true", "32-true, compiled"]),
        (["training.compile=cuda_graphs"], ["32-true", "32-true, compiled, cuda_graphs"]),
        (
            ["training.precision=bf16-mixed", "training.compile=true"],
            ["32-true", "32-true, compiled", "bf16-mixed", "bf16-mixed, compiled"],
        ),
    ],
)
def test_both_modes_run_in_the_settings_asked_for_and_plainly(
    corpus: Corpus, overrides: list[str], settings: list[str]
) -> None:
    found = [(way.setting, way.mode) for way in ways(corpus.config(*overrides))]
    assert found == [(setting, mode) for setting in settings for mode in ("raw", "store")]


def test_the_second_round_runs_backwards(corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path, log = script(tmp_path)
    figures = run_ways(corpus.config("training.compile=true"), [sys.executable, str(path)], 3)
    plain, compiled = ["--precision", "32-true"], ["--precision", "32-true", "--compile"]
    forwards = [["--no_shards", *plain], plain, ["--no_shards", *compiled], compiled]
    assert [json.loads(line) for line in log.read_text().splitlines()] == [*forwards, *reversed(forwards)]
    assert [len(row.rounds) for row in figures] == [2] * 4
    assert "8 runs of 8 steps each" in caplog.text
    assert re.search(r"run 2 of 8: store, 32-true; about \d+ s left", caplog.text)
    assert figures[0].examples_per_second == pytest.approx(20)


def test_graphs_are_asked_for_as_a_user_asks(corpus: Corpus) -> None:
    flags = [way.flags for way in ways(corpus.config("training.compile=cuda_graphs")) if way.compile]
    assert flags == [[*raw, "--precision", "32-true", "--compile", "cuda_graphs"] for raw in (["--no_shards"], [])]


def test_a_run_that_fails_is_named(corpus: Corpus, tmp_path: Path) -> None:
    path, log = script(tmp_path, fails="--no_shards")
    with pytest.raises(TrainingError, match="the run of raw, 32-true, ended with exit code 3; expected 4"):
        run_ways(corpus.config(), [sys.executable, str(path)], 4)
    assert len(log.read_text().splitlines()) == 1


def test_the_table_tells_what_the_store_changes(corpus: Corpus, tmp_path: Path) -> None:
    raw = Figures.of(RAW, [record((0.4,) * 10, (0.0,) * 10, peak_bytes=3 * 10**9)])
    store = Figures.of(STORE, [record((0.2,) * 10, (0.0,) * 10)])
    assert "32-true: from the store 2.00 x the examples/s of raw mode, with 2.00 GB less memory" in table([raw, store])
    smaller = Figures.of(RAW, [record((0.4,), (0.0,), peak_bytes=0)])
    assert "with 1.00 GB more memory" in table([smaller, store])
    printed = save_comparison([raw, store], corpus.config(), 10, tmp_path / "out")
    written = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert written == [".json", ".png"]
    assert all(str(path) in printed for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("overrides", "kept", "streams", "ranks", "said"),
    [
        (["use_precomputed_embeddings=false"], [], [], "1", "add --shards STORE"),
        ([], [], ["x.tar"], "1", "x.tar is read as a stream"),
        (["build_missing=true"], [], [], "1", "leave --build_missing out"),
        ([], ["--resume"], [], "1", "leave --resume out"),
        ([], [], [], "2", "without torchrun"),
    ],
)
def test_what_would_measure_something_else_is_refused(
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    kept: list[str],
    streams: list[str],
    ranks: str,
    said: str,
) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    data = ["shards=store", "use_precomputed_embeddings=true", *overrides]
    config = corpus.config(*(f"datamodule.data_config.{override}" for override in data))
    with pytest.raises(ConfigError, match=said):
        refuse_unfit_comparison(config, kept, streams)
