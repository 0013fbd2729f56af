"""Where the time of training steps goes: sums for the logs of a run, and single steps for --compare_modes."""

import json
import re
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from iianet.batch import Batch
from iianet.launch import usable_cores

SMOOTHING = 0.9
"""Share of the rate before in the rate that the progress bar shows."""
WARM_UP = 5
"""Steps that are not measured: workers start, kernels are chosen, compiled and loaded."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Time and bytes that steps took.

    Attributes:
        seconds: Seconds from asking for a batch to the end of its step, without validation.
        waited: Seconds of these until the batch was there; beside a GPU, which may have been at work meanwhile.
        bytes_read: Bytes read of stored embeddings, npz and audio.
    """

    seconds: float = 0.0
    waited: float = 0.0
    bytes_read: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            seconds=self.seconds + other.seconds,
            waited=self.waited + other.waited,
            bytes_read=self.bytes_read + other.bytes_read,
        )

    @property
    def wait_share(self) -> float:
        """Share of the time that waited for data, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"waited for data {100 * self.wait_share:.1f} % of {self.seconds:.0f} s, "
            f"read {self.bytes_read / 1e9:.3g} GB"
        )


class StepTimes:
    """Sums over the steps of this process.

    Attributes:
        per_second: Examples per second over the last steps, waiting for data included.
        epoch: Time and bytes of this epoch's steps, on this process.
        run: Time and bytes of the epochs before it, over all ranks.
    """

    def __init__(self) -> None:
        self.per_second = 0.0
        self.epoch = Spent()
        self.run = Spent()

    def add(self, step: Spent, examples: int) -> None:
        """Count a step."""
        rate = examples / max(step.seconds, 1e-9)
        self.per_second = SMOOTHING * self.per_second + (1 - SMOOTHING) * rate if self.per_second else rate
        self.epoch += step

    def end_epoch(self, epoch: Spent) -> None:
        """Add an epoch's figures of all ranks, and start the next epoch."""
        self.run += epoch
        self.epoch = Spent()


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Time, bytes and memory of the measured steps of a run.

    Attributes:
        device: Name of the device.
        seconds: Seconds of each step, from the end of the one before; with the time between epochs, without validation.
        waited: Seconds of each step until its batch was there.
        examples: Examples of all these steps and ranks.
        bytes_read: Bytes read of stored embeddings, npz and audio, of all these steps and ranks.
        epoch_steps: Steps of an epoch.
        peak_bytes: Peak memory of rank 0 over the whole run: on a GPU what torch allocated; on the CPU the resident
            memory of its process, with mapped shards, and without loader workers.
    """

    device: str
    seconds: tuple[float, ...]
    waited: tuple[float, ...]
    examples: int
    bytes_read: int
    epoch_steps: int
    peak_bytes: int

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "StepRecord":
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "seconds": tuple(values["seconds"]), "waited": tuple(values["waited"])})


class StepRecorder(pl.Callback):
    """Measures some steps after the warm-up, then ends the run.

    A GPU notes itself when it has done each step; nothing waits for it before the last.

    Args:
        steps: Steps to measure.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._bar = tqdm(total=WARM_UP + steps, desc="measuring", unit="step", delay=1.0, leave=False)
        self._ends: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self._waited: list[float] = []
        self._examples = 0
        self._bytes_read = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: Any, batch: Batch, __: int
    ) -> None:
        """Measure the step."""
        if pl_module.device.type == "cuda":
            stream = torch.cuda.current_stream(pl_module.device)
            self._events.append(stream.record_event(torch.cuda.Event(enable_timing=True)))  # type: ignore[no-untyped-call]
        self._ends.append(time.monotonic())
        self._waited.append(_loader(trainer).waited)
        if len(self._ends) > WARM_UP:
            self._examples += batch.num_examples
            self._bytes_read += batch.bytes_read
        self._bar.update()
        trainer.should_stop = len(self._ends) == WARM_UP + self.steps

    def record(self, trainer: pl.Trainer) -> StepRecord:
        """Measurements of the run, once it has ended."""
        self._bar.close()
        device = trainer.strategy.root_device
        if self._events:
            torch.cuda.synchronize(device)
            self._ends = [self._events[0].elapsed_time(event) / 1e3 for event in self._events]
        return StepRecord(
            device=_name(device),
            seconds=tuple(end - start for start, end in pairwise(self._ends[WARM_UP - 1 :])),
            waited=tuple(self._waited[WARM_UP:]),
            examples=self._examples * trainer.world_size,
            bytes_read=self._bytes_read * trainer.world_size,
            epoch_steps=int(trainer.num_training_batches),
            peak_bytes=_peak_bytes(device),
        )


def _loader(trainer: pl.Trainer) -> Any:
    return trainer.train_dataloader


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {usable_cores()} cores, {torch.get_num_threads()} threads"


def _peak_bytes(device: torch.device) -> int:
    """Peak memory, as in `StepRecord.peak_bytes`; getrusage would also count the process that started this one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert peak is not None, "/proc/self/status tells no VmHWM"
    return int(peak[1]) * 1024
