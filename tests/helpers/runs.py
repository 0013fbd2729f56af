"""Runs of train.py in this process and in others, and what they leave."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import recorder
from helpers.corpus import Corpus
from helpers.recorder import Stop
from iianet_cli import train_cli
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.storage.folder import Folder

RESULTS = Path("Experiments/checkpoint/tiny")
"""Folder of a run's results, below the working directory."""
EPOCHS = ("--set", "training.epochs=2")
ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "train.py"


def build_store(corpus: Corpus, name: str, limit: int | None = None, *overrides: str) -> Path:
    """Build a float32 store in a folder of the corpus, of at most `limit` utterances a split. Returns the folder."""
    path = corpus.root / name
    options = BuildOptions(device=torch.device("cpu"), dtype="float32", limit=limit)
    build(corpus.config(*overrides), Folder(path), options)
    return path


def run(corpus: Corpus, *words: object) -> tuple[int, Path]:
    """Run train.py in this process. Returns its exit code and the folder of its results."""
    with pytest.raises(SystemExit) as stopped:
        train_cli.main(["--conf_dir", str(corpus.config_file), *(str(word) for word in words)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, RESULTS


def run_recorded(
    corpus: Corpus, *words: object, record: Path, stop: Stop | None = None, ranks: int = 1, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run train.py in `ranks` processes, and write the steps of each rank below `record`; see `recorder`."""
    wishes = json.dumps({"record": str(record), "stop": stop, "ranks": ranks})
    command: Sequence[object] = [sys.executable, recorder.__file__, wishes, "--conf_dir", corpus.config_file, *words]
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # SIGKILL is sent to its whole process group
        timeout=timeout,
    )


def last(folder: Path = RESULTS) -> dict[str, Any]:
    """Read the last checkpoint of a run."""
    found: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)
    return found


def losses(folder: Path = RESULTS) -> list[tuple[float, float]]:
    """Read training and validation loss of each epoch of a run."""
    return [(row["train_loss"], row["val_loss"]) for row in last(folder)["history"]]
