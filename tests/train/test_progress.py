"""What a run tells of its progress: lines where there is no terminal, curves, and what ended it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.corpus import Corpus
from helpers.recorder import Stop, recorded
from helpers.runs import EPOCHS, RESULTS, TRAIN, last, losses, run
from matplotlib.figure import Figure
from torch._dynamo.utils import counters

from iianet.inference.trained import open_trained
from iianet.separator.blocks import Separator
from iianet.training import best_checkpoints, progress, results
from iianet.training.lightning_module import SeparationModule
from iianet_cli import train_cli

NOTEBOOK = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
"""What a notebook sets, and matplotlib refuses where that is not installed."""


def test_each_epoch_is_a_line_in_a_log_file(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, "--shards", store, *EPOCHS)
    outcome = capsys.readouterr()
    lines = [line for line in outcome.err.splitlines() if "train loss" in line]
    assert len(lines) == 2
    for number, (line, (train, val)) in enumerate(zip(lines, losses(), strict=True)):
        assert re.fullmatch(
            rf"INFO: epoch {number} \({number + 1} of 2\): train loss {train:.2f} dB \(negative SNR\), "
            rf"validation SI-SNR {-val:.2f} dB, lr 0.001, \d+ s",
            line,
        )
    assert "\r" not in outcome.err + outcome.out
    assert outcome.out == ""


def test_within_an_epoch_a_line_comes_from_time_to_time(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, "--shards", store)
    assert ": batch " not in capsys.readouterr().err, "that run takes less than a minute"
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    run(corpus, "--shards", store)
    said = capsys.readouterr().err
    assert re.search(r"INFO: epoch 0: batch 3 of 5, loss -?\d+\.\d\d dB, [\d.]+ examples/s", said)
    assert " 0 examples/s" not in said, "in the first line of all no step has been timed"
    assert "INFO: epoch 0: validation, batch 2 of 2" in said


def test_a_terminal_has_a_bar_on_standard_error(corpus: Corpus, store: Path, here: Path) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 120))
    command = [sys.executable, str(TRAIN), "--conf_dir", str(corpus.config_file), "--shards", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave) as process:
        os.close(slave)
        said = b""
        while True:
            try:
                said += os.read(master, 10**5)
            except OSError:  # its end
                break
        assert process.stdout is not None
        assert process.stdout.read() == b""
    os.close(master)
    assert process.returncode == 0, said[-2000:]
    assert b"Epoch 0:" in said, said[-3000:]
    assert b"train loss" in said


def test_the_last_line_names_the_best_epoch_and_its_files(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, "--shards", store, *EPOCHS)
    epoch, best = min(enumerate(val for _, val in losses()), key=lambda item: item[1])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"INFO: best: validation SI-SNR {-best:.2f} dB in epoch {epoch}; "
        f"{(here / RESULTS / f'epoch={epoch}.ckpt')}, as a model {here / RESULTS / 'best_model.pth'}"
    )


@pytest.mark.parametrize(
    ("setting", "axes"),
    [
        ("training.seed=0", {"negative SNR (dB)": ["training"], "negative SI-SNR (dB)": ["validation"]}),
        ("loss.train.sdr_type=pairwise_neg_sisdr", {"negative SI-SNR (dB)": ["training", "validation"]}),
    ],
)
def test_curves_of_two_losses_have_an_axis_each(
    corpus: Corpus,
    store: Path,
    here: Path,
    pictures: None,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    axes: dict[str, list[str]],
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *words, **named: (drawn.append(self), save(self, *words, **named))
    )
    run(corpus, "--shards", store, "--set", setting)
    *found, rate = drawn[-1].axes
    assert {axis.get_ylabel(): axis.get_legend_handles_labels()[1] for axis in found} == axes
    assert rate.get_ylabel() == "learning rate"


def test_pictures_need_no_backend_of_a_notebook(here: Path) -> None:
    program = (
        "from pathlib import Path; from iianet.training.results import plot_curves\n"
        "plot_curves(Path('curves.png'), [{'epoch': 0, 'train_loss': 1.0, 'val_loss': 2.0, 'lr': 0.1}], 'SNR', 'SNR')"
    )
    environment = {**os.environ, **NOTEBOOK, "PYTHONPATH": str(TRAIN.parent)}
    assert subprocess.run([sys.executable, "-c", program], cwd=here, env=environment, check=False).returncode == 0
    assert (here / "curves.png").exists()


@pytest.mark.parametrize(
    "command", [pytest.param(words, marks=pytest.mark.slow) for words in ([str(TRAIN)], ["-m", "iianet_cli.train_cli"])]
)
def test_the_command_needs_no_backend_of_a_notebook_either(command: list[str]) -> None:
    """torchmetrics imports matplotlib, which refuses one that is not installed."""
    environment = {**os.environ, **NOTEBOOK, "PYTHONPATH": str(TRAIN.parent)}
    asked = [sys.executable, *command, "--help"]
    ended = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_compiling_is_announced_and_its_time_is_told(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Separator, "compile_blocks", lambda *_: None)
    monkeypatch.setattr(train_cli, "refuse_without_compiler", lambda *_: None)
    run(corpus, "--shards", store, "--compile")
    said = capsys.readouterr().err
    assert said.index("compiling the separator: the first step takes minutes") < said.index("compiled: the first step")
    assert said.count("compiled: ") == 1
    assert "CUDA graphs" not in said


def test_what_cannot_be_recorded_in_graphs_is_told(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing can be without a GPU; and no run is let so far without one."""
    monkeypatch.setattr(train_cli, "refuse_without_compiler", lambda *_: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=recorded_by_nobody))
    counters["inductor"].clear()
    run(corpus, "--shards", store, "--compile", "cuda_graphs", "--set", "audionet.audionet_config.num_blocks=1")
    assert "CUDA graphs: torch cannot record 1 compiled part of the separator" in capsys.readouterr().err


def recorded_by_nobody(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor], *, options: Mapping[str, bool]) -> Any:
    """Stands in for inductor, which takes minutes: runs the graph as it is, and counts what inductor counts."""
    assert options == {"triton.cudagraphs": True}
    counters["inductor"]["cudagraph_skips"] += 1
    return graph


@pytest.mark.parametrize(("by", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 143)])
def test_results_are_there_as_soon_as_an_epoch_is_the_best(
    corpus: Corpus, store: Path, here: Path, pictures: None, by: str, code: int
) -> None:
    with recorded(here / "record", Stop("train", 8, by)):
        assert run(corpus, "--shards", store, *EPOCHS)[0] == code
    for name in (results.BEST_MODEL_FILE, results.BEST_K_FILE, results.CURVES_FILE):
        assert (RESULTS / name).exists(), name
    best = torch.load(RESULTS / "epoch=0.ckpt", weights_only=True)["state_dict"]
    model = open_trained(RESULTS / results.BEST_MODEL_FILE).model
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("epochs", "ranking"), [(1, {0: 1.0}), (2, {0: 1.0, 1: 3.0}), (3, {0: 1.0, 2: 2.0}), (4, {0: 1.0, 2: 2.0})]
)
def test_the_ranking_names_the_checkpoints_that_are_there_whenever_the_run_ends(
    corpus: Corpus,
    store: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    ranking: dict[int, float],
) -> None:
    """Two are kept, of which the first epoch's stays the best, and another one the second."""
    losses, init = iter([1.0, 3.0, 2.0, 4.0]), SeparationModule.__init__

    def with_losses(self: SeparationModule, *words: Any) -> None:
        init(self, *words)
        self.val_mean.compute = lambda: torch.tensor(next(losses))

    monkeypatch.setattr(SeparationModule, "__init__", with_losses)
    with recorded(here / "record", Stop("train", 5 * epochs + 2, "SIGTERM")):
        words = ("--set", "training.epochs=9", "training.save_top_k=2")
        assert run(corpus, "--shards", store, *words)[0] == 143
    expected = {f"epoch={epoch}.ckpt": loss for epoch, loss in ranking.items()}
    assert json.loads((RESULTS / results.BEST_K_FILE).read_text()) == expected
    assert {path.name for path in RESULTS.glob("epoch=*.ckpt")} == expected.keys()


def test_the_loss_curves_are_drawn_while_it_runs_but_not_after_each_short_epoch(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(results, "plot_curves", lambda *given: drawn.append(len(given[1])))
    run(corpus, "--shards", store, "--set", "training.epochs=3")
    assert drawn == [3]
    monkeypatch.setattr(best_checkpoints, "SECONDS_BETWEEN_PICTURES", 0.0)
    run(corpus, "--shards", store, "--set", "training.epochs=3")
    assert drawn == [3, 1, 2, 3, 3]


def test_sigusr1_is_treated_as_sigterm(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm sends it before the time limit."""
    before = signal.getsignal(signal.SIGUSR1)
    with recorded(here / "record", Stop("train", 3, "SIGUSR1")):
        assert run(corpus, "--shards", store, *EPOCHS)[0] == 143
    assert "stopped by SIGUSR1 at step 3; resume with --resume last" in capsys.readouterr().err
    assert last()["global_step"] == 3
    assert signal.getsignal(signal.SIGUSR1) == before
