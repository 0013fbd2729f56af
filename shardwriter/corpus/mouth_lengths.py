"""Mouths that are longer or shorter than the audio they belong to: of another rate, cut, or another recording's.

A frame more or less is normal. A mixture may be cut to its shorter source, so of an utterance's examples the one whose
length is nearest counts.
"""

import numpy as np
import numpy.typing as npt

from shardwriter.corpus.manifest_data import Manifest


def other_lengths(
    manifest: Manifest, frames: npt.NDArray[np.int64], samples_per_frame: float, tolerance: int
) -> list[str]:
    """Name the mouths whose length differs from that of their audio by more than `tolerance` frames, and say by what.

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
        f"{mouths[int(owner[example])]}: {frames[owner[example]]} frames, {expected[example]} expected for its audio"
        for example in wrong
    ]
