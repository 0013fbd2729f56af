"""Record the steps of train.py, and stop it where a test wants: in the test's process, or as a script.

python recorder.py '{"record": "FOLDER", "stop": ["train", 7, "SIGTERM"], "ranks": 1}' --conf_dir ...
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from iianet.batch import Batch
from iianet.training import trainer
from iianet.training.lightning_module import SeparationModule
from iianet_cli import train_cli


class Stop(NamedTuple):
    """Where and how a run is stopped.

    Attributes:
        stage: "train", "validation" or "test".
        step: Number of the step of that stage before which it is stopped, counted from 1 over all epochs.
        by: SIGTERM or SIGINT, sent to rank 0; SIGKILL, sent to all ranks; or Crash, which leaves what SIGKILL leaves
            and spares the process.
    """

    stage: str
    step: int
    by: str


class Crash(BaseException):
    """An exception that no code of ours catches."""


@contextmanager
def recorded(record: Path, stop: Stop | None = None, ranks: int = 1) -> Iterator[None]:
    """Let runs inside the block use `ranks` ranks, and write what each training step sees to record/RANK.jsonl."""
    record.mkdir(exist_ok=True)
    training_step, validation_step = SeparationModule.training_step, SeparationModule.validation_step
    test_step = SeparationModule.test_step
    seen = {"train": 0, "validation": 0, "test": 0}

    def count(stage: str, module: SeparationModule) -> None:
        seen[stage] += 1
        if stop is not None and stop[:2] == (stage, seen[stage]):
            _stop(stop.by, module.global_rank)

    def train_and_record(self: SeparationModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        count("train", self)
        row = {"epoch": self.current_epoch, "batch": batch_idx, "keys": batch.keys, "lr": self._lr}
        with (record / f"{self.global_rank}.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        return training_step(self, batch, batch_idx)

    def validate(self: SeparationModule, batch: Batch, batch_idx: int) -> None:
        count("validation", self)
        validation_step(self, batch, batch_idx)

    def test(self: SeparationModule, batch: Batch, batch_idx: int) -> None:
        count("test", self)
        test_step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeparationModule, "training_step", train_and_record)
        patch.setattr(SeparationModule, "validation_step", validate)
        patch.setattr(SeparationModule, "test_step", test)
        patch.setattr(trainer, "training_devices", lambda *_: ("cpu", ranks))
        yield


def _stop(by: str, rank: int) -> None:
    if by == "Crash":
        raise Crash
    if by == "SIGKILL":
        os.killpg(0, signal.SIGKILL)
    elif rank == 0:
        os.kill(os.getpid(), signal.Signals[by])


def steps(record: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Read what the training steps of a rank saw; nothing where none was made."""
    path = record / f"{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    wishes = json.loads(sys.argv[1])
    with recorded(Path(wishes["record"]), wishes["stop"] and Stop(*wishes["stop"]), wishes["ranks"]):
        train_cli.main(sys.argv[2:])
