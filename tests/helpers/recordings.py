"""Folders of wavs and mouths, as they are before there are lists."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000
KINDS = ("mix", "s1", "s2")


def write_wav(path: Path, samples: Any, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    """Write a wav, and its folder; a number stands for as many samples of silence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(samples) if isinstance(samples, int) else samples, rate, subtype=subtype)
    return path


def write_mixtures(audio: Path, split: str, names: Iterable[str], samples: int = 640) -> None:
    """Write silent mixtures of these names into a split's folders mix, s1 and s2."""
    for name in names:
        for kind in KINDS:
            write_wav(audio / split / kind / f"{name}.wav", samples)


def touch_mouths(folder: Path, utterances: Iterable[str]) -> None:
    """Make files with the names of mouths, and nothing in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in utterances:
        (folder / f"{name}.npz").touch()


def speech(seconds: float = 1.0, pitch: float = 220.0, seed: int = 0) -> Any:
    """A made voice, `(num_samples,)`: a tone that comes and goes, with some noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(time))
    tone = np.sin(2 * np.pi * pitch * time) + 0.5 * np.sin(2 * np.pi * 3 * pitch * time)
    return (0.2 * tone + 0.01 * noise) * (np.sin(2 * np.pi * 1.7 * time + seed) > -0.3)


def read_tsv(path: Path) -> list[Sequence[str]]:
    """Rows of a table, without its header."""
    header, *lines = path.read_text().splitlines()
    assert header.startswith("mixture\t")
    return [line.split("\t") for line in lines]
