"""Made corpora in IIANet's layout, with mouths and wavs as long as real ones.

They come from the generator of the tests, so that the layout is written down in one place. A script's path begins with
the script's folder, so the root of the repository, where `tests` lies, is added here.
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from made_utterances import FRAMES

from iianet.config.schema import Config
from iianet.encoder.mouth import FRAME_SIZE

sys.path.append(str(Path(__file__).parents[1]))

from tests.helpers.corpus import Corpus, Frames, Splits, make_corpus


def make_clips(folder: Path, clips: int, batch_size: int, num_workers: int = 4, frames: int = FRAMES) -> Config:
    """Write training utterances alone, whose npz compress about as those of real mouths do. Returns their config."""
    splits: Splits = {"train": {f"clip_{clip:04d}": frames for clip in range(clips)}, "val": 0, "test": 0}
    values = {"batch_size": batch_size, "num_workers": num_workers, "utterances_per_shard": 1000}
    return make_corpus(folder, splits, draw=lifelike, compressed=True, shardwriter=values).config()


def make_examples(folder: Path, keys: list[str]) -> Corpus:
    """Write training utterances alone, each in two mixtures; their mouths are black, for nobody encodes them."""
    splits: Splits = {"train": dict.fromkeys(keys, FRAMES), "val": 0, "test": 0}
    return make_corpus(folder, splits, ring=True, draw=black, compressed=True)


def lifelike(random: np.random.Generator, frames: int) -> Frames:
    """Draw a face that stays, with the noise of a camera."""
    noise = random.normal(0, 8, size=(frames, FRAME_SIZE, FRAME_SIZE))
    return np.clip(_face() + noise, 0, 255).astype(np.uint8)


def black(_: np.random.Generator, frames: int) -> Frames:
    """A mouth that nobody looks at: its frames are counted."""
    return np.zeros((frames, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)


@cache
def _face() -> npt.NDArray[np.float64]:
    return np.random.default_rng(0).normal(128, 30, size=(FRAME_SIZE, FRAME_SIZE))
