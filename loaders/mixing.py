"""Mixtures and targets: read as they were mixed, or mixed anew."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from loaders.audio import Audio, Samples

EPSILON = 1e-8
"""Keeps silence from being divided by zero, as in the reference."""


class Mixed(NamedTuple):
    """Mixture and target, each `(num_samples,)`, and the bytes that were read for them."""

    mixture: Samples
    target: Samples
    bytes_read: int


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Makes the audio of examples.

    Attributes:
        audio: Where it comes from.
        normalise: Whether to bring mixtures to unit variance.
    """

    audio: Audio
    normalise: bool

    def read(self, example: int, start: int, interferer: int, interferer_start: int) -> Mixed:
        """Mixture and target of an example.

        Args:
            example: Whose source is the target.
            start: First sample of its segment.
            interferer: Whose source is added to it (dynamic mixing); -1 for the example's own mixture (static).
            interferer_start: First sample of the interferer's segment.

        Raises:
            AudioError: A wav cannot be had.
        """
        target, first = self.audio.source(example, start)
        if interferer < 0:
            mixture, second = self.audio.mixture(example, start)
        else:
            other, second = self.audio.source(interferer, interferer_start)
            mixture = target + other
        if self.normalise:
            mixture, target = normalised(mixture, target)
        return Mixed(mixture, target, first + second)


def normalised(mixture: Samples, target: Samples) -> tuple[Samples, Samples]:
    """Take each one's mean away and divide both by the mixture's standard deviation (unbiased, as in the reference)."""
    scale = np.float32(mixture.std(ddof=1) + EPSILON)
    return (mixture - mixture.mean()) / scale, (target - target.mean()) / scale
