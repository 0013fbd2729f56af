"""A tiny corpus in IIANet's layout, for tests: noise for voices and for mouths, the same bytes for the same arguments.

    ROOT/json/{tr,cv,tt}/{mix,s1,s2}.json
    ROOT/audio/{tr,cv,tt}/{mix,s1,s2}/<one>_1.00_<other>_-1.00.wav   16 kHz mono PCM16, mix = s1 + s2 to the sample
    ROOT/mouths/<utterance>.npz                                      key `data`, (frames, 96, 96) uint8
    ROOT/config.yml

The utterances of a split form a chain: mixture i is utterance i with utterance i + 1, so the ends serve once and the
rest twice. Made again with more utterances in the same folder, it grows: what is there already stays as it is.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
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
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = 640


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus on disk.

    Attributes:
        root: Its folder.
        names: Per split, its utterances, which are their keys too, in the order of the lists.
    """

    root: Path
    names: Mapping[str, Sequence[str]]

    @property
    def config_file(self) -> Path:
        return self.root / "config.yml"

    def config(self, *overrides: str) -> Config:
        """Its config, with values over it spelt as --set spells them: `shardwriter.dtype=float32`."""
        return load_config(self.config_file, overrides)

    def mouth(self, name: str) -> Path:
        return self.root / "mouths" / f"{name}.npz"

    def list_file(self, split: str, kind: str) -> Path:
        """mix.json, s1.json or s2.json of a split."""
        return self.root / "json" / FOLDERS[split] / f"{kind}.json"

    def rows(self, split: str, kind: str) -> list[list[Any]]:
        rows: list[list[Any]] = json.loads(self.list_file(split, kind).read_text())
        return rows


def make_corpus(
    root: Path,
    splits: Mapping[str, int] | None = None,
    *,
    frames: int | Sequence[int] = (2, 3, 4),
    num_samples: int | None = None,
    absolute: bool = False,
    seed: int = 0,
) -> Corpus:
    """Write a corpus below `root`.

    Args:
        root: Folder, made if missing.
        splits: Utterances of each, none or at least 2; a split that is not named has no lists. By default 6 train, 2
            validate and 2 test.
        frames: Of the mouths, in turn.
        num_samples: Of every wav; by default as many as the shorter mouth of the mixture lasts.
        absolute: Write whole paths into the lists, as the reference's preparation does, and leave data_root open;
            else paths relative to `root`, which is the config's data_root.
        seed: Of the noise.
    """
    counts = {"train": 6, "val": 2, "test": 2} if splits is None else dict(splits)
    assert all(count != 1 for count in counts.values()), f"one utterance makes no mixture: {counts}"
    names = {split: [f"{FOLDERS[split]}_{number:03d}" for number in range(count)] for split, count in counts.items()}
    lengths = [frames] if isinstance(frames, int) else list(frames)
    corpus = Corpus(root=root, names=names)
    shortest = []
    for split, own in names.items():
        of = {name: lengths[number % len(lengths)] for number, name in enumerate(own)}
        for name, length in of.items():
            if not corpus.mouth(name).exists():
                write_mouth(corpus.mouth(name), make_frames(length, seed, name))
        samples = [num_samples or SAMPLES_PER_FRAME * min(of[one], of[other]) for one, other in pairwise(own)]
        _write_lists(corpus, split, samples, root.absolute() if absolute else Path(), seed)
        shortest += samples
    _write_config(corpus, min(shortest, default=SAMPLES_PER_FRAME) // SAMPLES_PER_FRAME, absolute)
    return corpus


def make_frames(frames: int, seed: int = 0, name: str = "") -> npt.NDArray[np.uint8]:
    """Mouth frames of noise, `(frames, 96, 96)`."""
    return _noise(seed, name).integers(0, 256, (frames, 96, 96), dtype=np.uint8)


def write_mouth(path: Path, frames: npt.NDArray[Any], key: str = "data") -> None:
    """Write a mouth npz, uncompressed: as many bytes whatever the frames show, and no clock time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: frames})  # type: ignore[arg-type]


def _noise(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _write_lists(corpus: Corpus, split: str, samples: Sequence[int], start: Path, seed: int) -> None:
    lists: dict[str, list[list[str | int]]] = {"mix": [], "s1": [], "s2": []}
    for (one, other), length in zip(pairwise(corpus.names[split]), samples, strict=True):
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


def _write_config(corpus: Corpus, segment_frames: int, absolute: bool) -> None:
    """Everything as small as it goes: 2 shards a split, a separator of a few thousand weights, one process."""
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
        "audionet": {"audionet_config": {**sizes, "num_blocks": 2, "upsampling_depth": 3}},
        "videonet": {"videonet_config": {"pretrain": None, "seed": 0}},
        "training": {"gpus": None, "epochs": 1, "loggers": ["csv"]},
        "datamodule": {"data_config": data},
        "shardwriter": {"utterances_per_shard": 3, "batch_size": 4, "num_workers": 2},
        "exp": {"exp_name": "tiny"},
    }
    corpus.config_file.write_text(yaml.safe_dump(values, sort_keys=False))
