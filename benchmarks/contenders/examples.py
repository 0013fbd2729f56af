"""Whole training examples: an embedding and two seconds of a mixture and of its source, in batches of 8."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from made_corpus import make_examples
from made_utterances import FRAMES, embedding_of, key_of, once
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from contenders.contender import Contender, Loaded
from iianet.config.schema import Config, load_config
from loaders.datamodule import SeparationData
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot

BATCH_SIZE = 8
NUM_SAMPLES = FRAMES * 640
Example = tuple[str, Tensor, Tensor, Tensor]


def make(folder: Path, count: int) -> None:
    """A corpus of so many utterances, each in two mixtures, and stores of it with and without audio."""
    corpus = folder / "corpus"
    once(corpus, lambda begun: _write_corpus(begun, count))
    for audio in ("path", "embed"):
        once(folder / f"store-{audio}", lambda begun, audio=audio: _build(corpus, begun, audio))  # type: ignore[misc]


def contenders(folder: Path, workers: tuple[int, ...]) -> list[Contender]:
    """Ours both ways, and the earlier tool's item; more workers than there are cores are not started."""

    def ours(setting: str, audio: str) -> Contender:
        return Contender(
            name="SeparationData",
            setting=setting,
            folder=folder,
            workers=tuple(n for n in workers if n in (0, 2)),
            open=lambda n: _separation(folder, audio, n),
            loaded=lambda batch: Loaded(list(batch.keys), batch.embedding),
        )

    earlier = Contender(
        name="one npz per utterance",
        setting="embedding npz, two soundfile reads",
        folder=folder,
        workers=tuple(n for n in workers if n in (0, 2)),
        open=lambda n: DataLoader(
            Files(folder / "corpus"), BATCH_SIZE, shuffle=True, num_workers=n, persistent_workers=n > 0
        ),
        loaded=lambda batch: Loaded(list(batch[0]), batch[1]),
    )
    return [ours("audio from wavs", "path"), ours("audio from the shards", "embed"), earlier]


class Files(Dataset[Example]):
    """The earlier tool's item: three files of an example, read one after the other."""

    def __init__(self, corpus: Path) -> None:
        self.corpus = corpus
        lists = {kind: json.loads((corpus / "json/tr" / f"{kind}.json").read_text()) for kind in ("mix", "s1", "s2")}
        self.examples = [
            (mixture, source, mouth)
            for kind in ("s1", "s2")
            for (mixture, _), (source, mouth, _) in zip(lists["mix"], lists[kind], strict=True)
        ]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> Example:
        mixture, source, mouth = self.examples[number]
        key = Path(mouth).stem
        with np.load(self.corpus / f"mouths/{key}_embedding.npz", allow_pickle=False) as archive:
            embedding = torch.from_numpy(archive["embedding"])
        wavs = [
            torch.from_numpy(soundfile.read(self.corpus / path, stop=NUM_SAMPLES, dtype="float32")[0])
            for path in (mixture, source)
        ]
        return key, embedding, wavs[0], wavs[1]


def _separation(folder: Path, audio: str, workers: int) -> Iterable[Any]:
    values = {"shards": f"{folder}/store-{audio}", "num_workers": workers}
    overrides = [f"datamodule.data_config.{name}={value}" for name, value in values.items()]
    for package in ("loaders", "shardwriter"):
        logging.getLogger(package).setLevel(logging.ERROR)  # validation is the same split, and not loaded
    data = SeparationData(
        _config(folder / "corpus", *overrides), [Snapshot.open(Folder(folder / f"store-{audio}"))], ""
    )
    return data.train_dataloader()


def _build(corpus: Path, store: Path, audio: str) -> None:
    options = BuildOptions(splits=("train",), device=torch.device("cpu"), audio=audio, import_embeddings=True)
    build(_config(corpus), Folder(store), options)


def _config(corpus: Path, *overrides: str) -> Config:
    directories = {"train_dir": "json/tr", "valid_dir": "json/tr", "test_dir": "json/tt"}
    data: dict[str, Any] = {name: str(corpus / value) for name, value in directories.items()}
    data |= {"data_root": str(corpus), "batch_size": BATCH_SIZE, "persistent_workers": True, "train_mixing": "static"}
    document = {"datamodule": {"data_config": data}, "exp": {"exp_name": "benchmark"}}
    path = corpus / "config.yml"
    path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML; written anew where the corpus was moved
    return load_config(path, overrides)


def _write_corpus(corpus: Path, count: int) -> None:
    """Utterances, their mixtures, and beside each mouth the embedding of the earlier tool."""
    keys = [key_of(number) for number in range(count)]
    make_examples(corpus, keys)
    for number, key in enumerate(tqdm(keys, desc="embeddings", delay=1.0, leave=False)):
        np.savez_compressed(corpus / f"mouths/{key}_embedding.npz", embedding=embedding_of(number))
