"""Mixtures and targets: read as the corpus mixed them (static), or mixed in each epoch (dynamic)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from iianet.batch import Dropped
from iianet.config.data_section import DatamoduleSection
from iianet.errors import AudioError, ConfigError, FeatureStoreError
from loaders.audio import Kind, Samples, Segment

Example = TypeVar("Example")
EPSILON = 1e-8
"""Keeps silence from being divided by zero, as in the reference."""


class InterfererError(AudioError):
    """The audio that was to be mixed into a row cannot be used; the row's own may be in order."""


class Mixed(NamedTuple):
    """Mixture and target, each `(num_samples,)`, and the bytes that were read for them."""

    mixture: Samples
    target: Samples
    bytes_read: int


@dataclass(frozen=True, kw_only=True)
class Mixer(Generic[Example]):
    """Makes the audio of examples.

    Attributes:
        read_audio: Reads a segment of an example's source or mixture, from a sample on, of a length; raises AudioError.
        num_samples: Length of the segments.
        normalise: Whether to bring mixtures to unit variance.
    """

    read_audio: Callable[[Kind, Example, int, int], Segment]
    num_samples: int
    normalise: bool

    def read(self, example: Example, start: int, interferer: Example | None = None, interferer_start: int = 0) -> Mixed:
        """Read the mixture and the target of an example.

        Args:
            example: Example whose source is the target.
            start: First sample of its segment.
            interferer: Example whose source is added (dynamic mixing); None takes the example's own mixture (static).
            interferer_start: First sample of the interferer's segment.

        Raises:
            AudioError: A recording cannot be read; InterfererError where it is the interferer's.
        """
        target, first = self.read_audio("source", example, start, self.num_samples)
        if interferer is None:
            mixture, second = self.read_audio("mixture", example, start, self.num_samples)
        else:
            try:
                added, second = self.read_audio("source", interferer, interferer_start, self.num_samples)
            except AudioError as error:
                raise InterfererError(str(error)) from error
            mixture = target + added
        if self.normalise:
            mixture, target = normalised(mixture, target)
        return Mixed(mixture, target, first + second)


def refuse_apart_in_streams(section: DatamoduleSection) -> None:
    """Raise ConfigError where a stream is to mix speakers or videos apart: it adds the next utterance that comes."""
    whose = section.data_config.mix_apart
    if whose is not None and section.dynamic_mixing:
        raise ConfigError(
            f"datamodule.data_config.mix_apart: {whose} needs to choose what is mixed, and a stream of tars adds the "
            "next utterance that comes; train from a store or from raw mouths, or set mix_apart: null"
        )


def dropped(error: FeatureStoreError, key: str, interferer: str) -> Dropped:
    """List a row of `key` under the utterance that is to blame: its own, or the one that was to be mixed into it."""
    if isinstance(error, InterfererError):
        return Dropped(interferer, f"{error}. It was drawn to be mixed into a row of {key}, which is skipped with it")
    return Dropped(key, str(error))


def normalised(mixture: Samples, target: Samples) -> tuple[Samples, Samples]:
    """Take each one's mean away and divide both by the mixture's standard deviation (unbiased, as in the reference)."""
    scale = np.float32(mixture.std(ddof=1) + EPSILON)
    return (mixture - mixture.mean()) / scale, (target - target.mean()) / scale
