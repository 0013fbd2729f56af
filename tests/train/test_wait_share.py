"""What a run says of the time that it waited for data, and of what it read."""

import csv
import re
import time
from pathlib import Path

import pytest
from corpus import Corpus
from runs import EPOCHS, RESULTS, run

from iianet.batch import Batch
from iianet.lightning_module import SeparationModule
from loaders.dataset import ExampleDataset


def logged(name: str) -> list[float]:
    """Values of a metric, epoch by epoch."""
    (path,) = RESULTS.glob("csv/*/metrics.csv")
    with path.open() as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row[name]]


def test_each_epoch_and_the_end_tell_the_share_of_waiting(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slow data make nearly all of it; what validation takes is not part of it."""
    batch, validate = ExampleDataset._batch, SeparationModule.validation_step

    def slow_batch(*arguments: object) -> Batch:
        time.sleep(0.3)
        return batch(*arguments)  # type: ignore[arg-type]

    def slow_validation(*arguments: object) -> None:
        time.sleep(0.5)
        validate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ExampleDataset, "_batch", slow_batch)
    monkeypatch.setattr(SeparationModule, "validation_step", slow_validation)
    limits = ("training.limit_train_batches=4", "training.val_check_interval=2", "training.limit_val_batches=1")
    run(corpus, "--shards", store, "--set", *limits)
    (share,) = logged("wait_share")
    assert 0.6 < share < 1
    said = re.search(r"waited for data (.*) % of (.*) s, read", capsys.readouterr().err)
    assert said is not None
    assert float(said[1]) == pytest.approx(100 * share, abs=0.1)
    assert 0.6 < float(said[2]) * share < 2.4  # 4 batches of 0.3 s; seconds are told in whole ones


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
