"""Windows over a recording, and their estimates joined again: overlap-add whose weights sum to one.

    |---- window 0 ----|
               |---- window 1 ----|            starts are whole mouth frames, evenly spread
                         |---- window 2 ----|
    |  0         |xx|  1   |xx|   2         |  xx: a fade, in the middle of an overlap

Each sample comes from one window, or in a fade from two, whose weights are those of half a Hann window: the estimates
of both are nearly the same signal, so it is their amplitudes that have to sum to one, not their powers. What lies
outside of the fades is context: the network hears it, and its estimate of it is left out.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iianet.batch import frames_over
from iianet.errors import AudioError

Samples = npt.NDArray[np.float32]
"""Samples of one channel, float32; those of whole numbers are between -1 and 1."""

OVERLAPPING = 1 / 4
"""Least share of a window that lies in the next one, too."""
FADING = 1 / 8
"""Share of a window that a fade takes; the rest of the overlap is context, half of it on either side."""
SHORTEST = 16
"""Mouth frames of the shortest window, so that both have whole frames."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of equal length over a recording; the last one ends with it, and may be a part of a frame shorter.

    Attributes:
        num_samples: Samples of the recording, at least one.
        samples_per_frame: Samples that a mouth frame spans.
        length: Mouth frames of a window; of a shorter recording, its own.
        starts: First mouth frame of each window.
        fade: Mouth frames of a fade.
    """

    num_samples: int
    samples_per_frame: int
    length: int
    starts: tuple[int, ...]
    fade: int

    @classmethod
    def over(cls, num_samples: int, samples_per_frame: int, length: int) -> "Windows":
        """Spread as few windows as overlap enough; one where the recording is no longer than that.

        Args:
            num_samples: Samples of the recording, at least one.
            samples_per_frame: Samples that a mouth frame spans.
            length: Mouth frames of a window, at least `SHORTEST`.
        """
        assert num_samples > 0 and length >= SHORTEST
        frames = frames_over(num_samples, samples_per_frame)
        fade = round(length * FADING)
        hop = length - math.ceil(length * OVERLAPPING)
        beyond = max(0, frames - length)
        steps = -(-beyond // hop)
        starts = tuple(round(step * beyond / steps) for step in range(1, steps + 1))
        return cls(
            num_samples=num_samples,
            samples_per_frame=samples_per_frame,
            length=min(length, frames),
            starts=(0, *starts),
            fade=fade,
        )

    @property
    def fades(self) -> list[int]:
        """First mouth frame of each fade, one fewer than there are windows."""
        return [later + (start + self.length - later - self.fade) // 2 for start, later in pairwise(self.starts)]

    def samples(self, window: int) -> slice:
        """The samples of a window."""
        start = self.starts[window] * self.samples_per_frame
        return slice(start, min(self.num_samples, start + self.length * self.samples_per_frame))

    def frames(self, window: int) -> slice:
        """The mouth frames of a window."""
        return slice(self.starts[window], self.starts[window] + self.length)

    def cut(self, blocks: Iterable[Samples]) -> Iterator[Tensor]:
        """Cut a recording that comes in blocks of any size into the windows, `(samples,)` each.

        Raises:
            AudioError: The blocks are not `num_samples` in all.
        """
        source, held, first = iter(blocks), np.empty(0, np.float32), 0
        for window in range(len(self.starts)):
            wanted = self.samples(window)
            parts = [held[wanted.start - first :]]
            missing = wanted.stop - wanted.start - len(parts[0])
            while missing > 0 and (block := next(source, None)) is not None:
                parts.append(block)
                missing -= len(block)
            held, first = np.concatenate(parts), wanted.start
            if missing > 0:
                break
            yield torch.from_numpy(held[: wanted.stop - wanted.start].copy())
        found = first + len(held) + sum(map(len, source))
        if found != self.num_samples:
            raise AudioError(
                f"the recording changed while it was read: {self.num_samples:,} samples at first, and then {found:,}; "
                "run again when nobody writes it"
            )


class OverlapAdd:
    """Joins the estimates of the windows, one after the other. It holds no more than one fade.

    Args:
        windows: Windows over the recording.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._next = 0
        self._fading: Tensor | None = None
        places = (torch.arange(windows.fade * windows.samples_per_frame, dtype=torch.float64) + 0.5) * (math.pi / 2)
        self._rise = torch.sin(places / max(1, len(places))).square().float()  # from 0 to 1

    def add(self, estimate: Tensor) -> Tensor:
        """Add the estimate of the next window.

        Args:
            estimate: `(any, samples of the window)`.

        Returns:
            The samples that are finished by it, which follow those of the call before, `(any, samples)`.
        """
        windows, number = self._windows, self._next
        self._next += 1
        start, spf = windows.starts[number], windows.samples_per_frame
        begin = (windows.fades[number - 1] - start) * spf if number else 0
        is_last = self._next == len(windows.starts)
        end = estimate.shape[-1] if is_last else (windows.fades[number] + windows.fade - start) * spf
        joined = estimate[:, begin:end].clone()
        if self._fading is not None:
            faded = joined[:, : len(self._rise)]  # a view
            faded.copy_(torch.lerp(self._fading, faded, self._rise.to(faded)))
        if is_last:
            return joined
        self._fading = joined[:, joined.shape[-1] - len(self._rise) :]
        return joined[:, : joined.shape[-1] - len(self._rise)]
