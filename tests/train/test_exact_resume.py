"""A run that is stopped and resumed equals one that never stopped, bit by bit: batches, learning rates, checkpoint."""

import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.corpus import Corpus
from helpers.recorder import Crash, Stop, recorded, steps
from helpers.runs import last, run, run_recorded

EVERY = 2
"""Optimizer steps from one checkpoint to the next."""
SETTINGS = (
    "training.epochs=3",  # of 5 training and 2 validation batches
    "scheduler={sche_name: ReduceLROnPlateau, sche_config: {patience: 0, factor: 0.5, mode: max}}",  # it acts
    f"training.checkpoint_every_n_steps={EVERY}",
    "training.save_top_k=-1",  # a checkpoint lists every validation
)
TWICE = "training.val_check_interval=2"
"""Validate after batches 2 and 4 of 5."""
LIMITED = "training.limit_train_batches=3"
ACCUMULATED = "training.accumulate_grad_batches=2"
TESTED = "training.test_every_n_epochs=2"
"""Test after epochs 0 and 2: two examples, in a batch."""
STOPS = {
    "in the middle of an epoch": ((), Stop("train", 8, "SIGTERM")),
    "in the first epoch's last step": ((), Stop("train", 5, "SIGTERM")),
    "in validation": ((), Stop("validation", 1, "SIGTERM")),
    "killed in the middle of an epoch": ((), Stop("train", 8, "Crash")),
    "while gradients are accumulated": ((ACCUMULATED,), Stop("train", 8, "SIGTERM")),
    "in the test split": ((TESTED,), Stop("test", 1, "SIGTERM")),
}
MORE_STOPS = {
    "before validation in an epoch": ((TWICE,), Stop("train", 2, "SIGTERM")),
    "killed in the second validation": ((), Stop("validation", 4, "Crash")),
    "by Ctrl-C in the middle of an epoch": ((), Stop("train", 8, "SIGINT")),
    "in the run's last step": ((), Stop("train", 15, "SIGTERM")),
    "in the run's last batch": ((), Stop("validation", 6, "SIGTERM")),
    "in an epoch's last validation": ((TWICE,), Stop("validation", 7, "SIGTERM")),
    "in an epoch's last step without validation": ((TWICE,), Stop("train", 5, "SIGTERM")),
    "killed in an epoch's first validation": ((TWICE,), Stop("validation", 2, "Crash")),
    "in a limited epoch's validation": ((LIMITED,), Stop("validation", 2, "SIGTERM")),
    "in bf16-mixed": (("training.precision=bf16-mixed",), Stop("train", 8, "SIGTERM")),
    "in validation's last batch": ((), Stop("validation", 2, "SIGTERM")),
    "killed in an epoch's first step": ((), Stop("train", 11, "Crash")),
    "in validation in an epoch": ((TWICE,), Stop("validation", 2, "SIGTERM")),
    "killed after validation in an epoch": ((TWICE,), Stop("train", 4, "Crash")),
    "in the run's last step without validation": ((TWICE,), Stop("train", 15, "SIGTERM")),
    "in a limited epoch": ((LIMITED,), Stop("train", 5, "SIGTERM")),
    "killed after a limited epoch": ((LIMITED,), Stop("train", 4, "Crash")),
    "in a step of one batch": ((ACCUMULATED,), Stop("train", 5, "SIGTERM")),
    "killed while gradients are accumulated": ((ACCUMULATED,), Stop("train", 9, "Crash")),
    "in the run's last batch of the test split": ((TESTED,), Stop("test", 2, "SIGTERM")),
    "killed in the test split": ((TESTED,), Stop("test", 2, "Crash")),
    "in validation before the test split": ((TESTED,), Stop("validation", 6, "SIGTERM")),
    "in an epoch after the test split": ((TESTED,), Stop("train", 8, "SIGTERM")),
    "in the test split of an epoch that is validated twice": ((TESTED, TWICE), Stop("test", 1, "SIGTERM")),
}
CASES = [
    *(pytest.param(*case, id=name) for name, case in STOPS.items()),
    *(pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in MORE_STOPS.items()),
]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a run came to."""

    steps: Sequence[dict[str, Any]]
    checkpoint: dict[str, Any]


Uninterrupted = Callable[..., Ended]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One working directory for all, emptied: checkpoints hold paths."""
    shutil.rmtree(place)
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def uninterrupted(corpus: Corpus, store: Path) -> Uninterrupted:
    """Runs that never stop, by their settings; each is run once."""
    found: dict[tuple[str, ...], Ended] = {}

    def ended(*settings: str) -> Ended:
        if settings not in found:
            assert start(corpus, store, "--set", *SETTINGS, *settings, record="whole") == 0
            found[settings] = Ended(steps=steps(Path("whole")), checkpoint=last())
            shutil.rmtree("Experiments")
        return found[settings]

    return ended


def start(corpus: Corpus, store: Path, *words: object, record: str, stop: Stop | None = None) -> int:
    """Exit code of a run in this process; that of SIGKILL where it crashed."""
    with recorded(Path(record), stop):
        try:
            return run(corpus, "--shards", store, *words)[0]
        except Crash:
            return -signal.SIGKILL


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Places where two nested values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for key in one for place in differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            place for index, value in enumerate(one) for place in differences(value, other[index], f"{name}/{index}")
        ]
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return [] if (torch.equal(one, other) if tensors else one == other) else [name]


def assert_it_never_stopped(whole: Ended, stopped: Sequence[Any], resumed: Sequence[Any], lost: int) -> None:
    """That all steps but the `lost` ones at most were gone through once, and in order, and came to the same end."""
    first = len(whole.steps) - len(resumed)
    assert list(stopped) == whole.steps[: len(stopped)]
    assert list(resumed) == whole.steps[first:]
    assert first <= len(stopped) <= first + lost
    assert not differences(whole.checkpoint, last())


@pytest.mark.parametrize(("settings", "stop"), CASES)
def test_a_run_goes_on_as_if_it_had_never_stopped(
    corpus: Corpus, store: Path, here: Path, uninterrupted: Uninterrupted, settings: tuple[str, ...], stop: Stop
) -> None:
    whole, words = uninterrupted(*settings), ("--set", *SETTINGS, *settings)
    code = start(corpus, store, *words, record="stopped", stop=stop)
    assert code == {"SIGTERM": 143, "SIGINT": 130}.get(stop.by, -signal.SIGKILL)
    assert start(corpus, store, *words, "--resume", "last", record="resumed") == 0
    batches = EVERY * (2 if ACCUMULATED in settings else 1)
    lost = batches if stop.by == "Crash" else 0
    assert_it_never_stopped(whole, steps(Path("stopped")), steps(Path("resumed")), lost)


def test_the_scheduler_acts_in_these_runs(here: Path, uninterrupted: Uninterrupted) -> None:
    for settings in ((), (TWICE,), (LIMITED,), (ACCUMULATED,)):
        assert len({step["lr"] for step in uninterrupted(*settings).steps}) > 1, settings


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_with_other_workers(
    corpus: Corpus, store: Path, here: Path, uninterrupted: Uninterrupted
) -> None:
    whole, words = uninterrupted(), ("--shards", store, "--set", *SETTINGS)
    workers = "datamodule.data_config.num_workers"
    killed = run_recorded(corpus, *words, f"{workers}=1", record=Path("killed"), stop=Stop("train", 8, "SIGKILL"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert start(corpus, store, "--set", *SETTINGS, "--resume", "last", record="resumed") == 0
    assert_it_never_stopped(whole, steps(Path("killed")), steps(Path("resumed")), EVERY)


@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_with_one(
    corpus: Corpus, store: Path, here: Path, uninterrupted: Uninterrupted
) -> None:
    """Two ranks with one example each see together what one with two sees; stopped in the first validation."""
    whole, words = uninterrupted(), ("--shards", store, "--set", *SETTINGS, "datamodule.data_config.batch_size=1")
    stopped = run_recorded(corpus, *words, record=Path("two"), stop=Stop("validation", 1, "SIGTERM"), ranks=2)
    assert stopped.returncode == 143, stopped.stderr[-3000:]
    assert last()["validation_is_due"]
    assert start(corpus, store, "--set", *SETTINGS, "--resume", "last", record="one") == 0
    pairs = zip(steps(Path("two"), 0), steps(Path("two"), 1), strict=True)
    seen = [*(one["keys"] + other["keys"] for one, other in pairs), *(step["keys"] for step in steps(Path("one")))]
    assert seen == [step["keys"] for step in whole.steps]
    assert [row["epoch"] for row in last()["history"]] == [0, 1, 2]


TWO_RANKS = [
    Stop("train", 8, "SIGTERM"),
    Stop("validation", 4, "SIGTERM"),
    Stop("train", 8, "SIGKILL"),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_go_on_as_if_they_had_never_stopped(corpus: Corpus, store: Path, here: Path) -> None:
    words = ("--shards", store, "--set", *SETTINGS, "datamodule.data_config.batch_size=1")
    assert run_recorded(corpus, *words, record=Path("whole"), ranks=2).returncode == 0
    checkpoint = last()
    for number, stop in enumerate(TWO_RANKS):
        shutil.rmtree("Experiments")
        stopped, resumed = Path(f"stopped-{number}"), Path(f"resumed-{number}")
        ended = run_recorded(corpus, *words, record=stopped, stop=stop, ranks=2)
        assert ended.returncode == (143 if stop.by == "SIGTERM" else -signal.SIGKILL), ended.stderr[-3000:]
        ended = run_recorded(corpus, *words, "--resume", "last", record=resumed, ranks=2)
        assert ended.returncode == 0, ended.stderr[-3000:]
        for rank in range(2):
            whole = Ended(steps=steps(Path("whole"), rank), checkpoint=checkpoint)
            lost = 0 if stop.by == "SIGTERM" else EVERY
            assert_it_never_stopped(whole, steps(stopped, rank), steps(resumed, rank), lost)
