"""Made utterances of the size of real ones, the same for the same number: their keys and their embeddings."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

DIM, FRAMES = 512, 50
UTTERANCE_BYTES = DIM * FRAMES * 2
"""As float16."""


def key_of(number: int) -> str:
    """As long as real ones are."""
    return f"5535415699068794046_{number:06d}"


def embedding_of(number: int) -> npt.NDArray[np.float32]:
    """Noise, `(512, 50)`: float32 of it deflates to 95 KB, and a real embedding to 94 KB."""
    return np.random.default_rng([0, number]).standard_normal((DIM, FRAMES), dtype=np.float32)


def half_of(number: int) -> npt.NDArray[np.float16]:
    """What every contender must hand over."""
    return embedding_of(number).astype(np.float16)


def utterances(count: int) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
    """Keys and float16 embeddings of the first so many."""
    return ((key_of(number), half_of(number)) for number in range(count))


def number_of(key: str) -> int:
    """Undoes `key_of`."""
    return int(key.rsplit("_", 1)[1])


def once(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a folder that is not there; one that it did not finish is made anew."""
    if folder.exists():
        return
    begun = folder.with_name(f"{folder.name}.begun")
    shutil.rmtree(begun, ignore_errors=True)
    begun.parent.mkdir(parents=True, exist_ok=True)
    write(begun)
    begun.rename(folder)
