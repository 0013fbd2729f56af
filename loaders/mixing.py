"""Mixtures and targets: read as they were mixed, or mixed anew."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loaders.audio import Samples, read_segment
from shardwriter.manifest import Manifest

EPSILON = 1e-8
"""Keeps silence from being divided by zero, as in the reference."""


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Reads the audio of examples.

    Attributes:
        manifest: Says which wavs an example has.
        num_samples: Length of the segment, which starts at 0.
        sample_rate: Hz.
        normalise: Whether to bring mixtures to unit variance.
    """

    manifest: Manifest
    num_samples: int
    sample_rate: int
    normalise: bool

    def read(self, example: int, interferer: int) -> tuple[Samples, Samples]:
        """Mixture and target, each `(num_samples,)`.

        Args:
            example: Whose source is the target.
            interferer: Whose source is added to it (dynamic mixing); -1 for the example's own mixture (static).

        Raises:
            AudioError: A wav cannot be had.
        """
        target = self._wav(self.manifest.examples[example].source)
        if interferer < 0:
            mixture = self._wav(self.manifest.examples[example].mixture)
        else:
            mixture = target + self._wav(self.manifest.examples[interferer].source)
        return normalised(mixture, target) if self.normalise else (mixture, target)

    def _wav(self, path: str) -> Samples:
        return read_segment(self._root / path, self.num_samples, self.sample_rate)

    @property
    def _root(self) -> Path:
        return self.manifest.data_root


def normalised(mixture: Samples, target: Samples) -> tuple[Samples, Samples]:
    """Take each one's mean away and divide both by the mixture's standard deviation (unbiased, as in the reference)."""
    scale = np.float32(mixture.std(ddof=1) + EPSILON)
    return (mixture - mixture.mean()) / scale, (target - target.mean()) / scale
