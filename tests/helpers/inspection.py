"""A small store of the real encoder beside its corpus, and calls of inspect-shards."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.corpus import Corpus, copy_corpus, make_corpus
from shardwriter.build.build import build
from shardwriter.build.options import BuildOptions
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect_cli import main
from shardwriter.storage.folder import Folder

FRAMES = {"train": {"ann": 4, "bob": 3, "cat.two": 5, "dan": 4, "eve": 2}, "val": {"fay": 3, "gus": 4}}
BROKEN = "eve"
"""Its npz is no zip, so it fails."""
STORED = {"train": 4, "val": 2}


@dataclass(frozen=True)
class Place:
    """A folder with a corpus, its config, and a store."""

    corpus: Corpus

    @property
    def root(self) -> Path:
        return self.corpus.root

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def config(self) -> Path:
        return self.corpus.config_file

    def mouth(self, name: str) -> Path:
        return self.corpus.mouth(name)

    def inspected(self) -> InspectedStore:
        """The store as it is now, as inspect-shards sees it."""
        return InspectedStore.open(Folder(self.store))

    def copy(self, to: Path) -> "Place":
        """Copy everything, times too; the copied config names the copied corpus."""
        return Place(copy_corpus(self.corpus, to))

    def build(self) -> None:
        options = BuildOptions(splits=("train", "val"), device=torch.device("cpu"))
        build(self.corpus.config(), Folder(self.store), options)


def make_place(root: Path, **shardwriter: Any) -> Place:
    """Make a corpus and build its store: five train utterances in three shards, one of them broken, and two for val.

    `shardwriter` are values of that section of the config.
    """
    place = Place(make_corpus(root, FRAMES, ring=True, shardwriter={"utterances_per_shard": 2, **shardwriter}))
    place.mouth(BROKEN).write_bytes(b"not a zip")
    place.build()
    return place


def damage(place: Place, shard: str, offset: int, content: bytes) -> None:
    """Write other bytes into a tar."""
    path = place.store / f"{shard}.tar"
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(content)] = content
    path.write_bytes(whole)


def run(*words: object) -> int:
    """Call inspect-shards. Returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """Call inspect-shards --json. Returns its exit code, and the document, which is all of stdout."""
    capsys.readouterr()
    code = run(*words, "--json")
    return code, json.loads(capsys.readouterr().out)
