"""More than one rank: all see all examples, none is left waiting, one writes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.corpus import Corpus, make_corpus
from helpers.recorder import steps
from helpers.runs import TRAIN, last, losses, run, run_recorded
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from iianet_cli import train_cli

FROZEN = "optimizer.lr=0.0"


@pytest.mark.timeout(240)
def test_two_ranks_train_and_validate_over_all_examples(corpus: Corpus, store: Path, here: Path) -> None:
    """3 of 4 validation examples fall to one rank in batches of 3; the mean is over all, as on one rank."""
    settings = ("--shards", store, "--set", FROZEN, "datamodule.data_config.batch_size=3")
    done = run_recorded(corpus, *settings, record=here / "record", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("all 6 utterances are in") == 1
    assert "sync_dist" not in done.stderr
    both = losses()[0][1]
    assert last()["global_step"] == 10 // 6
    run(corpus, *settings)
    assert both == pytest.approx(losses()[0][1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("validated", [2, 4])
@pytest.mark.timeout(240)
def test_more_ranks_than_validation_examples_do_not_hang(here: Path, validated: int) -> None:
    """2 for 3 ranks, or 3 and 1: a mixture brings two examples, so two ranks always have equally many."""
    corpus = make_corpus(here / "corpus", {"train": 6, "val": validated // 2 + 1, "test": 2}, frames=5)
    settings = ("--set", FROZEN, "datamodule.data_config.batch_size=1", "datamodule.data_config.augment_mouth=false")
    done = run_recorded(corpus, *settings, record=here / "record", ranks=3)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [len(steps(here / "record", rank)) for rank in range(3)] == [3, 3, 3]
    all_three = losses()[0][1]
    run(corpus, *settings)
    assert all_three == pytest.approx(losses()[0][1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_machines_train_as_one(corpus: Corpus, store: Path, here: Path) -> None:
    command = [sys.executable, TRAIN, "--conf_dir", corpus.config_file, "--shards", store]
    settings = ["--set", "training.num_nodes=2", "datamodule.data_config.batch_size=1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        subprocess.Popen(
            [*command, *settings],
            env={**os.environ, "NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    said = [machine.communicate(timeout=200)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said[0][-3000:] + said[1][-3000:]
    assert "2 ranks, 2 examples per step" in said[0]
    assert last()["global_step"] == 5


def test_only_the_first_rank_touches_the_folder(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = run(corpus, "--shards", store)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert folder / "best_model.pth" in before
    monkeypatch.setattr(train_cli, "fit", lambda *_: 0)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning sets it for the whole process
    monkeypatch.setenv("NODE_RANK", "1")
    assert run(corpus, "--shards", store, "--set", "training.num_nodes=2", "training.epochs=3")[0] == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
