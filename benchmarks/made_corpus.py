"""A corpus of noise with ready embeddings, in IIANet's layout, and stores of it, without and with its audio."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from made_utterances import FRAMES, embedding_of, key_of, once
from tqdm import tqdm

from configs.schema import Config, load_config
from shardwriter.build import BuildOptions, build

SAMPLE_RATE = 16_000
NUM_SAMPLES = FRAMES * 640
VALIDATED = 2
"""Utterances of the validation split, which training wants to have."""


class Item(NamedTuple):
    """An example: the files that the earlier tool's training read for it."""

    key: str
    embedding: Path
    source: Path
    mixture: Path


@dataclass(frozen=True, kw_only=True)
class MadeCorpus:
    """Clips of 2 s. Two utterances make a mixture, and each is the target once, so every key is one example.

    Attributes:
        folder: Of everything.
        count: Training utterances, and examples; even.
    """

    folder: Path
    count: int

    @property
    def root(self) -> Path:
        """Folder of the files."""
        return self.folder / "corpus"

    def items(self) -> list[Item]:
        """All training examples."""
        return [self.item(number) for number in range(self.count)]

    def item(self, number: int) -> Item:
        """The example of an utterance."""
        key, wav = key_of(number), _wav(number - number % 2)
        return Item(
            key=key,
            embedding=self.root / f"mouths/{key}_embedding.npz",
            source=self.root / f"s{number % 2 + 1}/{wav}",
            mixture=self.root / f"mix/{wav}",
        )

    def store(self, audio: str) -> Path:
        """The store whose shards say where the audio is (`path`), or hold it (`embed`)."""
        return self.folder / f"store-{audio}"

    def config(self, **options: object) -> Config:
        """Static mixtures as they are, segments of 2 s; `options` are of datamodule.data_config."""
        folders = {"train_dir": "tr", "valid_dir": "cv", "test_dir": "tt"}
        data: dict[str, object] = {name: str(self.root / folder) for name, folder in folders.items()}
        data |= {"data_root": str(self.root), "segment": NUM_SAMPLES / SAMPLE_RATE, "train_mixing": "static"}
        document = {
            "datamodule": {"data_config": {**data, "pin_memory": False, **options}},
            "exp": {"exp_name": "benchmark"},
        }
        path = self.folder / "config.yml"
        path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
        return load_config(path)

    def make(self) -> None:
        """Write what is not there yet."""
        once(self.root, self._write)
        for audio in ("path", "embed"):
            once(self.store(audio), lambda store, audio=audio: self._build(store, audio))  # type: ignore[misc]

    def _write(self, root: Path) -> None:
        for name in ("mouths", "mix", "s1", "s2"):
            (root / name).mkdir(parents=True)
        every = self.count + VALIDATED
        for number in tqdm(range(0, every, 2), desc="corpus", leave=False):
            self._write_pair(root, number)
        _write_lists(root / "tr", range(self.count))
        _write_lists(root / "cv", range(self.count, every))

    def _write_pair(self, root: Path, first: int) -> None:
        random = np.random.default_rng([1, first])
        voices = random.integers(-9000, 9001, (2, NUM_SAMPLES)).astype(np.int16)
        for number, voice in enumerate(voices, start=first):
            item = self.item(number)
            # Importing looks at a mouth's frames alone, so that black ones do.
            np.savez_compressed(root / f"mouths/{item.key}.npz", data=np.zeros((FRAMES, 96, 96), dtype=np.uint8))
            np.savez_compressed(root / f"mouths/{item.embedding.name}", embedding=embedding_of(number))
            soundfile.write(root / item.source.relative_to(self.root), voice, SAMPLE_RATE, subtype="PCM_16")
        soundfile.write(root / f"mix/{_wav(first)}", voices.sum(axis=0, dtype=np.int16), SAMPLE_RATE)

    def _build(self, store: Path, audio: str) -> None:
        device = torch.device("cpu")
        options = BuildOptions(splits=("train", "val"), device=device, audio=audio, import_embeddings=True)
        build(self.config(), store, options)


def _wav(first: int) -> str:
    """Name of the wavs of a mixture."""
    return f"{key_of(first)}_{key_of(first + 1)}.wav"


def _write_lists(folder: Path, numbers: range) -> None:
    lists = {
        "mix": [[f"mix/{_wav(first)}", NUM_SAMPLES] for first in numbers[::2]],
        "s1": [[f"s1/{_wav(first)}", f"mouths/{key_of(first)}.npz", NUM_SAMPLES] for first in numbers[::2]],
        "s2": [[f"s2/{_wav(first)}", f"mouths/{key_of(first + 1)}.npz", NUM_SAMPLES] for first in numbers[::2]],
    }
    folder.mkdir()
    for name, rows in lists.items():
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
