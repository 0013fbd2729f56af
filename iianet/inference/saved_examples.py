"""Examples to listen to: the best, the worst and the middle ones of an evaluation."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.inference.metrics import Signals
from iianet.inference.pictures import IMPROVEMENT, draw_spectrograms
from iianet.inference.record import EvaluatedRow
from iianet.run_folder import replacing

LOUDEST = 0.99
"""Level to which three wavs are turned down together where one of them would be cut off, of full scale."""


def chosen(rows: Mapping[int, EvaluatedRow], count: int) -> dict[int, str]:
    """Choose the examples with the highest SI-SNRi, the lowest, and those about the median.

    Args:
        rows: Rows by example.
        count: How many of each kind.

    Returns:
        Name of each one's folder, by example, such as `best-1`; an example is chosen once.
    """
    ranked = sorted(
        (example for example in rows if IMPROVEMENT in rows[example].figures.values),
        key=lambda example: (-rows[example].figures.values[IMPROVEMENT], example),
    )
    middle = len(ranked) // 2
    around = sorted(range(len(ranked)), key=lambda place: abs(place - middle))[:count]
    kinds = {"best": ranked[:count], "worst": ranked[::-1][:count], "median": [ranked[place] for place in around]}
    found: dict[int, str] = {}
    for kind, examples in kinds.items():
        for number, example in enumerate(examples, start=1):
            found.setdefault(example, f"{kind}-{number}")
    return found


def save_example(folder: Path, name: str, row: EvaluatedRow, heard: Signals) -> None:
    """Write mixture.wav, target.wav and estimate.wav, 16 bit, and spectrograms.png into a folder of their own."""
    key = re.sub(r"[^A-Za-z0-9_.-]+", "-", row.name[0])[:80]
    own = folder / f"{name}-{key}"
    own.mkdir(parents=True, exist_ok=True)
    peak = max(float(np.abs(samples).max()) for samples in heard)
    scale = min(1.0, LOUDEST / peak) if peak else 1.0
    for kind, samples in heard._asdict().items():
        with replacing(own / f"{kind}.wav") as stream:
            soundfile.write(stream, scale * samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    title = f"{row.name[1]}: {row.name[0]}\nSI-SNRi {row.figures.values[IMPROVEMENT]:.2f} dB"
    draw_spectrograms(heard, title, own / "spectrograms.png")


def outdated(folder: Path) -> Iterator[Path]:
    """Folders of examples that an earlier evaluation saved."""
    for kind in ("best", "worst", "median"):
        yield from (path for path in folder.glob(f"{kind}-[0-9]*") if path.is_dir())
