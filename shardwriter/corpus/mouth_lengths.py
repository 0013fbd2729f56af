"""Mouths that are longer or shorter than the audio they belong to: of another rate, cut, or another recording's.

A frame more or less is normal. A mixture may be cut to its shorter source, so of an utterance's examples the one whose
length is nearest counts.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shardwriter.corpus.manifest_data import Manifest


class OtherLength(NamedTuple):
    """A mouth npz relative to data_root, its frames, and those that its audio has."""

    mouth: str
    frames: int
    expected: int

    def __str__(self) -> str:
        return f"{self.mouth}: {self.frames} frames, {self.expected} expected for its audio"


def other_lengths(
    manifest: Manifest, frames: npt.NDArray[np.int64], samples_per_frame: float, tolerance: int
) -> list[OtherLength]:
    """The mouths whose length differs from that of their audio by more than `tolerance` frames.

    Args:
        manifest: Of the split.
        frames: Frames of each utterance, `(utterances,)`; 0 where they are not known.
        samples_per_frame: Audio samples that a frame spans.
        tolerance: Frames.
    """
    owner = manifest.utterance_of_example()
    expected = np.rint(manifest.num_samples() / samples_per_frame).astype(np.int64)
    apart = np.abs(frames[owner] - expected)
    nearest_first = np.lexsort((apart, owner))
    nearest = nearest_first[np.unique(owner[nearest_first], return_index=True)[1]]
    wrong = nearest[(apart[nearest] > tolerance) & (frames[owner[nearest]] > 0)]
    mouths = manifest.utterances.column("mouth")
    return [
        OtherLength(str(mouths[int(owner[example])]), int(frames[owner[example]]), int(expected[example]))
        for example in wrong
    ]
