"""--compare_modes measures both modes, and leaves nothing of training behind."""

import hashlib
import json
import time
from pathlib import Path

import pytest
from helpers.corpus import Corpus
from helpers.runs import run

from iianet.batch import Batch
from iianet.training.lightning_module import SeparationModule
from iianet.training.step_times import WARM_UP, StepRecord
from loaders.assemble import Assembler


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_of_it_measures_the_steps_after_the_warm_up(
    corpus: Corpus, store: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three: the wait of each for slow data, and the bytes of their batches and no others. It writes one file."""
    batch, step = Assembler.batch, SeparationModule.training_step
    read = []

    def slow_batch(*arguments: object) -> Batch:
        time.sleep(0.2)
        return batch(*arguments)  # type: ignore[arg-type]

    def count(self: SeparationModule, batch: Batch, batch_idx: int) -> object:
        read.append(batch.bytes_read)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Assembler, "batch", slow_batch)
    monkeypatch.setattr(SeparationModule, "training_step", count)
    assert run(corpus, "--shards", store, "--record_steps", 3, "--record_file", here / "record.json")[0] == 0
    record = StepRecord.load(here / "record.json")
    assert len(read) == WARM_UP + 3
    assert record.bytes_read == sum(read[WARM_UP:]) > 0
    assert (record.examples, record.epoch_steps) == (3 * 2, 5)
    assert len(record.seconds) == len(record.waited) == 3
    assert all(0.2 <= waited <= seconds for seconds, waited in zip(record.seconds, record.waited, strict=True))
    assert 50e6 < record.peak_bytes < 20e9
    assert [path.name for path in here.iterdir()] == ["record.json"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_modes_are_measured_and_no_training_state_is_touched(
    corpus: Corpus, store: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, "--shards", store, "--set", "training.limit_train_batches=2")[0] == 0
    before = digests(here), digests(store)
    assert run(corpus, "--shards", store, "--compare_modes", 4)[0] == 0
    (record,) = here.glob("Experiments/compare_modes/tiny-*.json")
    chart = record.with_suffix(".png")
    left = digests(here)
    assert {path: left.pop(path) for path in (str(record), str(chart))}
    assert (left, digests(store)) == before
    found = json.loads(record.read_text())
    raw, stored = found["ways"]
    assert (raw["mode"], stored["mode"]) == ("raw", "store")
    assert (found["steps"], found["batch_size"], len(raw["rounds"])) == (4, 2, 2)
    assert raw["epoch_bytes"] > stored["epoch_bytes"] > 0  # npz of 5 frames of 9 KB, against 512 float32 each
    assert "from the store" in capfd.readouterr().out


def test_it_needs_a_store(corpus: Corpus, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(corpus, "--compare_modes", 4)[0] == 2
    assert "add --shards STORE" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize("steps", ["0", "-1", "many"])
def test_a_number_of_steps_that_measures_nothing_is_refused(
    corpus: Corpus, store: Path, here: Path, capsys: pytest.CaptureFixture[str], steps: str
) -> None:
    assert run(corpus, "--shards", store, f"--compare_modes={steps}")[0] == 2
    assert f"--compare_modes: found '{steps}', expected a whole number above 0" in capsys.readouterr().err
