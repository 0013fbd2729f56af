"""A recording of any length through the separator: window by window, for all of its speakers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iianet.batch import fit_frames
from iianet.encoder.kernels import exact_kernels
from iianet.inference.trained import refuse_not_finite
from iianet.inference.windows import OverlapAdd, Samples, Windows

EPSILON = 1e-8
"""Keeps silence from being divided by zero, as in training."""


@dataclass(frozen=True, kw_only=True)
class WindowSeparator:
    """Separates windows of a recording.

    Attributes:
        network: Takes mixtures `(batch, samples)` and embeddings `(batch, dim, frames)`, and gives estimates
            `(batch, 1, samples)`, as `IIANet` does.
        device: Device of the network.
        batch_size: Windows that go through it together; every speaker has its own.
        normalises: Whether the network was trained with `normalize_audio`.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    device: torch.device
    batch_size: int = 1
    normalises: bool = False

    def separate(self, blocks: Iterable[Samples], embeddings: Sequence[Tensor], windows: Windows) -> Iterator[Samples]:
        """Separate a recording.

        Args:
            blocks: The mixture, in blocks of any size.
            embeddings: For each speaker `(dim, frames)`, on the CPU. One that is short has its last column repeated.
            windows: Windows over the mixture.

        Yields:
            For each window, the samples of all speakers that are finished by it, `(speakers, samples)`; together they
            are as long as the mixture.

        Raises:
            AudioError: The blocks are not as many samples as the windows are for, or cannot be read.
            WeightsError: Estimates are not finite.
        """
        joined = OverlapAdd(windows)
        fitted = [fit_frames(each, windows.starts[-1] + windows.length).float() for each in embeddings]
        step = max(1, self.batch_size // len(fitted))
        for first, mixtures in _together(windows.cut(blocks), step):
            seen = [windows.frames(window) for window in range(first, first + len(mixtures))]
            rows = torch.stack([embedding[:, frames] for frames in seen for embedding in fitted])
            estimates = self._estimates(mixtures.repeat_interleave(len(fitted), 0), rows)
            for estimate in estimates.view(len(mixtures), len(fitted), -1):
                refuse_not_finite(estimate)
                yield joined.add(estimate).numpy()

    @torch.inference_mode()
    def _estimates(self, mixtures: Tensor, embeddings: Tensor) -> Tensor:
        """Estimates of rows, `(rows, samples)`, on the CPU."""
        with exact_kernels(self.device):
            parts = [
                self._heard(mixture.to(self.device), embedding.to(self.device)).cpu()
                for mixture, embedding in zip(
                    torch.split(mixtures, self.batch_size), torch.split(embeddings, self.batch_size), strict=True
                )
            ]
        return torch.cat(parts)

    def _heard(self, mixture: Tensor, embedding: Tensor) -> Tensor:
        """Estimates at the level of the mixture, whatever the network hears, `(batch, samples)`."""
        if not self.normalises:
            return self.network(mixture, embedding)[:, 0]
        deviation = mixture.std(1, keepdim=True) if mixture.shape[1] > 1 else torch.zeros_like(mixture)
        heard = (mixture - mixture.mean(1, keepdim=True)) / (deviation + EPSILON)
        return self.network(heard, embedding)[:, 0] * (deviation + EPSILON)


def _together(windows: Iterable[Tensor], step: int) -> Iterator[tuple[int, Tensor]]:
    """Put windows of one length together, at most `step`: number of the first one, and `(windows, samples)`."""
    first, waiting = 0, list[Tensor]()
    for window in windows:
        if waiting and (len(waiting) == step or len(waiting[0]) != len(window)):
            yield first, torch.stack(waiting)
            first, waiting = first + len(waiting), []
        waiting.append(window)
    if waiting:
        yield first, torch.stack(waiting)
