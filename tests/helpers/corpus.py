"""Make corpora in IIANet's layout, for tests and benchmarks: the same bytes for the same arguments.

    ROOT/json/{tr,cv,tt}/{mix,s1,s2}.json
    ROOT/audio/{tr,cv,tt}/{mix,s1,s2}/<one>_1.00_<other>_-1.00.wav   16 kHz mono PCM16, mix = s1 + s2 to the sample
    ROOT/mouths/<utterance>.npz                                      key `data`, (frames, 96, 96) uint8
    ROOT/config.yml

By default it is tiny, and voices and mouths are noise. The utterances of a split form a chain: mixture i is utterance i
with utterance i + 1, so the ends serve once and the rest twice. Made again with more utterances in the same folder, it
grows: what is there already stays as it is.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import yaml

from iianet.config.schema import Config, load_config

FOLDERS = {"train": "tr", "val": "cv", "test": "tt"}
KINDS = ("mix", "s1", "s2")
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = 640

Frames = npt.NDArray[np.uint8]
Splits = Mapping[str, int | Mapping[str, int]]
"""For each split: the number of its utterances, or their names, each with the frames of its mouth."""
Rows = list[Any]
"""Rows of mix.json, [wav, num_samples], or of s1.json and s2.json, [wav, mouth, num_samples]."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus on disk.

    Attributes:
        root: Folder of the corpus.
        names: Names of the utterances of each split, which are their keys too, in the order of the lists.
    """

    root: Path
    names: Mapping[str, Sequence[str]]

    @property
    def config_file(self) -> Path:
        return self.root / "config.yml"

    def config(self, *overrides: str) -> Config:
        """Load the config, with overrides spelt as --set spells them: `shardwriter.dtype=float32`."""
        return load_config(self.config_file, overrides)

    def mouth(self, name: str) -> Path:
        return self.root / "mouths" / f"{name}.npz"

    def list_file(self, split: str, kind: str) -> Path:
        """Path of mix.json, s1.json or s2.json of a split."""
        return self.root / "json" / FOLDERS[split] / f"{kind}.json"

    def rows(self, split: str, kind: str) -> Rows:
        """Read the rows of a list of a split."""
        rows: Rows = json.loads(self.list_file(split, kind).read_text())
        return rows


def noise_frames(random: np.random.Generator, frames: int) -> Frames:
    """Draw a mouth that shows nothing, `(frames, 96, 96)`; it does not compress."""
    return random.integers(0, 256, (frames, 96, 96), dtype=np.uint8)


def make_corpus(
    root: Path,
    splits: Splits | None = None,
    *,
    frames: int | Sequence[int] = (2, 3, 4),
    num_samples: int | None = None,
    ring: bool = False,
    absolute: bool = False,
    draw: Callable[[np.random.Generator, int], Frames] = noise_frames,
    compressed: bool = False,
    shardwriter: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Corpus:
    """Write a corpus below `root`.

    Args:
        root: Folder, made if missing.
        splits: Utterances of each split, of which there are none or at least 2. A split that is not named has no lists.
            By default 6 train, 2 validate and 2 test.
        frames: Lengths of the mouths, taken in turn, of splits that are given as numbers.
        num_samples: Length of every wav; by default as long as the shorter mouth of its mixture.
        ring: Mix the last utterance of a split with the first, too, so that all serve twice.
        absolute: Write whole paths into the lists, as the reference's preparation does, and leave data_root open;
            else paths relative to `root`, which is the config's data_root.
        draw: Function that draws a mouth of so many frames.
        compressed: Compress the npz of mouths; else their size does not depend on their content.
        shardwriter: Values of this section of the config, over those of a tiny corpus.
        seed: Seed of all that is drawn.
    """
    lengths = _lengths({"train": 6, "val": 2, "test": 2} if splits is None else splits, frames)
    corpus = Corpus(root=root, names={split: list(own) for split, own in lengths.items()})
    shortest = []
    for split, own in lengths.items():
        for name, length in own.items():
            if not corpus.mouth(name).exists():
                write_mouth(corpus.mouth(name), draw(_noise(seed, name), length), compressed=compressed)
        pairs = list(pairwise([*own, *list(own)[: int(ring)]]))
        samples = [num_samples or SAMPLES_PER_FRAME * min(own[one], own[other]) for one, other in pairs]
        _write_lists(corpus, split, pairs, samples, root.absolute() if absolute else Path(), seed)
        shortest += samples
    segment = min(shortest, default=SAMPLES_PER_FRAME) // SAMPLES_PER_FRAME
    _write_config(corpus, segment, absolute, shardwriter or {})
    return corpus


def copy_corpus(corpus: Corpus, to: Path) -> Corpus:
    """Copy the folder of a corpus, with the times of its files; the copied config names the copy."""
    shutil.copytree(corpus.root, to, dirs_exist_ok=True)
    copy = Corpus(root=to, names=corpus.names)
    copy.config_file.write_text(copy.config_file.read_text().replace(str(corpus.root), str(to)))
    return copy


def edit_list(corpus: Corpus, split: str, kind: str, change: Callable[[Rows], Any]) -> Path:
    """Change one list, in place or into what `change` returns. Returns its path."""
    path, rows = corpus.list_file(split, kind), corpus.rows(split, kind)
    changed = change(rows)
    path.write_text(json.dumps(rows if changed is None else changed))
    return path


def edit_lists(corpus: Corpus, split: str, change: Callable[[Rows], Any]) -> None:
    """Change the three lists of a split alike: take mixtures out, or put them in another order."""
    for kind in KINDS:
        edit_list(corpus, split, kind, change)


def make_frames(frames: int, seed: int = 0, name: str = "") -> Frames:
    """Mouth frames of noise, `(frames, 96, 96)`."""
    return noise_frames(_noise(seed, name), frames)


def write_mouth(path: Path, frames: npt.NDArray[Any], key: str = "data", *, compressed: bool = False) -> None:
    """Write a mouth npz, which holds no clock time; uncompressed, it has as many bytes whatever the frames show."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compressed else np.savez
    save(path, **{key: frames})  # type: ignore[arg-type]


def _lengths(splits: Splits, frames: int | Sequence[int]) -> dict[str, Mapping[str, int]]:
    """Name the utterances of each split, with the frames of their mouths."""
    turns = [frames] if isinstance(frames, int) else list(frames)
    found: dict[str, Mapping[str, int]] = {}
    for split, given in splits.items():
        if isinstance(given, int):
            given = {f"{FOLDERS[split]}_{number:03d}": turns[number % len(turns)] for number in range(given)}
        assert len(given) != 1, f"one utterance makes no mixture: {splits}"
        found[split] = given
    return found


def _noise(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _write_lists(
    corpus: Corpus, split: str, pairs: Sequence[tuple[str, str]], samples: Sequence[int], start: Path, seed: int
) -> None:
    lists: dict[str, Rows] = {kind: [] for kind in KINDS}
    for (one, other), length in zip(pairs, samples, strict=True):
        name = f"{one}_1.00_{other}_-1.00.wav"
        wavs = {kind: Path("audio", FOLDERS[split], kind, name) for kind in lists}
        sources = [_noise(seed, kind, name).integers(-9000, 9001, length).astype(np.int16) for kind in ("s1", "s2")]
        for path, signal in zip(wavs.values(), (sources[0] + sources[1], *sources), strict=True):
            if not (corpus.root / path).exists():
                (corpus.root / path).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(corpus.root / path, signal, SAMPLE_RATE, subtype="PCM_16")
        lists["mix"].append([str(start / wavs["mix"]), length])
        for kind, utterance in (("s1", one), ("s2", other)):
            mouth = corpus.mouth(utterance).relative_to(corpus.root)
            lists[kind].append([str(start / wavs[kind]), str(start / mouth), length])
    for kind, rows in lists.items():
        path = corpus.list_file(split, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1))


def _write_config(corpus: Corpus, segment_frames: int, absolute: bool, shardwriter: Mapping[str, Any]) -> None:
    """Everything as small as it goes: few utterances a shard, a separator of a few thousand weights, one process."""
    data: dict[str, Any] = {
        "train_dir": str(corpus.root / "json/tr"),
        "valid_dir": str(corpus.root / "json/cv"),
        "test_dir": str(corpus.root / "json/tt"),
        "segment": segment_frames / 25,
        "batch_size": 2,
        "num_workers": 0,
        "pin_memory": False,
    }
    if not absolute:
        data["data_root"] = str(corpus.root)
    sizes = {"out_channels": 8, "in_channels": 8, "vin_channels": 4, "vout_channels": 4}
    values = {
        "audionet": {"audionet_config": {**sizes, "num_blocks": 2, "upsampling_depth": 2}},
        "videonet": {"videonet_config": {"pretrain": None, "seed": 0}},
        "training": {"gpus": None, "epochs": 1, "loggers": ["csv"]},
        "datamodule": {"data_config": data},
        "shardwriter": {"utterances_per_shard": 3, "batch_size": 4, "num_workers": 2, **shardwriter},
        "exp": {"exp_name": "tiny"},
    }
    corpus.config_file.write_text(yaml.safe_dump(values, sort_keys=False))
