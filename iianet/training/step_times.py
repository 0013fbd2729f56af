"""Where the time of training steps goes: how many examples pass, and how long they wait for data."""

from dataclasses import dataclass

SMOOTHING = 0.9
"""Of the rate that the progress bar shows."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What steps took.

    Attributes:
        seconds: From asking for a batch to the end of its step. Validation is not among it.
        waited: Seconds of these until the batch was there.
        bytes_read: Of stored embeddings, npz and audio.
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
        epoch: What the steps of this epoch took.
        run: What the epochs before it took, as end_epoch was told.
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
        """Count the epoch, as it was over all ranks, and begin the next."""
        self.run += epoch
        self.epoch = Spent()
