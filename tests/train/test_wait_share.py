"""What a run says of the time that it waited for data, and of what it read."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.corpus import Corpus
from helpers.runs import EPOCHS, RESULTS, run

from iianet.batch import Batch
from iianet.training.lightning_module import SeparationModule
from loaders.assemble import Assembler


def logged(name: str) -> list[float]:
    """Values of a metric, epoch by epoch."""
    (path,) = RESULTS.glob("csv/*/metrics.csv")
    with path.open() as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row[name]]


def test_each_epoch_and_the_end_tell_the_share_of_waiting(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a clock of the test's own: a batch takes 3 s, a step 1 s; what validation takes is not part of it."""
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("loaders.dataset.time", clock)
    monkeypatch.setattr("iianet.training.lightning_module.time", clock)

    def takes(seconds: float, owner: type, name: str) -> None:
        method = getattr(owner, name)

        def timed(*arguments: object) -> object:
            nonlocal now
            now += seconds
            return method(*arguments)

        monkeypatch.setattr(owner, name, timed)

    takes(3, Assembler, "batch")
    takes(1, SeparationModule, "training_step")
    takes(5, SeparationModule, "validation_step")
    limits = ("training.limit_train_batches=4", "training.val_check_interval=2", "training.limit_val_batches=1")
    run(corpus, "--shards", store, "--set", *limits)
    assert logged("wait_share") == [pytest.approx(0.75)]
    assert "waited for data 75.0 % of 16 s, read" in capsys.readouterr().err


def test_each_epoch_tells_what_its_batches_read(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    step = SeparationModule.training_step

    def count(self: SeparationModule, batch: Batch, batch_idx: int) -> object:
        read.append(batch.bytes_read)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SeparationModule, "training_step", count)
    run(corpus, "--shards", store, *EPOCHS)
    assert min(read) > 0
    assert logged("gigabytes_read") == pytest.approx([sum(read[:5]) / 1e9, sum(read[5:]) / 1e9])
