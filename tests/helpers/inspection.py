"""A small real store beside its corpus, and how the tests call inspect-shards on copies of it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from iianet.config.schema import load_config
from shardwriter.build.build import BuildOptions, build
from shardwriter.inspect_cli import main

FRAMES = {"train": {"ann": 4, "bob": 3, "cat.two": 5, "dan": 4, "eve": 2}, "val": {"fay": 3, "gus": 4}}
BROKEN = "eve"
"""Its npz is no zip, so it fails."""
STORED = {"train": 4, "val": 2}


@dataclass(frozen=True)
class Place:
    """A folder with a corpus, its config, and a store; `shardwriter` is that section of the config."""

    root: Path
    shardwriter: Mapping[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def config(self) -> Path:
        return self.root / "conf.yml"

    def mouth(self, name: str) -> Path:
        return self.root / "mouths" / f"{name}.npz"

    def copy(self, to: Path) -> "Place":
        """Copy everything, times too; the copied config names the copied corpus."""
        shutil.copytree(self.root, to, dirs_exist_ok=True)
        other = replace(self, root=to)
        other.write_config()
        return other

    def write_config(self) -> None:
        folders = {"train_dir": "json/train", "valid_dir": "json/val", "test_dir": "json/none"}
        data = {name: str(self.root / folder) for name, folder in folders.items()} | {"data_root": str(self.root)}
        values = {
            "datamodule": {"data_config": data},
            "videonet": {"videonet_config": {"pretrain": None}},
            "shardwriter": {"utterances_per_shard": 2, **self.shardwriter},
            "exp": {"exp_name": "inspected"},
        }
        self.config.write_text(yaml.safe_dump(values), encoding="utf-8")

    def build(self) -> None:
        options = BuildOptions(splits=("train", "val"), device=torch.device("cpu"))
        build(load_config(self.config), self.store, options)


def make_place(root: Path, **shardwriter: Any) -> Place:
    """Make a corpus and build its store: five train utterances in three shards, one of them broken, and two for val."""
    place = Place(root, shardwriter)
    generator = np.random.default_rng(0)
    for split, utterances in FRAMES.items():
        rows: dict[str, list[Any]] = {"mix": [], "s1": [], "s2": []}
        names = list(utterances)
        for first, second in zip(names, [*names[1:], names[0]], strict=True):  # each serves two mixtures
            num_samples = 640 * min(utterances[first], utterances[second])
            rows["mix"].append([f"audio/mix/{first}_{second}.wav", num_samples])
            rows["s1"].append([f"audio/s1/{first}_{second}.wav", f"mouths/{first}.npz", num_samples])
            rows["s2"].append([f"audio/s2/{first}_{second}.wav", f"mouths/{second}.npz", num_samples])
        for kind, listed in rows.items():
            for row in listed:
                (root / row[0]).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(root / row[0], generator.uniform(-0.5, 0.5, row[-1]), 16000)
            folder = root / "json" / split
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{kind}.json").write_text(json.dumps(listed), encoding="utf-8")
        for name, frames in utterances.items():
            write_mouth(place, name, frames, seed=len(name))
    place.mouth(BROKEN).write_bytes(b"not a zip")
    place.write_config()
    place.build()
    return place


def write_mouth(place: Place, name: str, frames: int, seed: int) -> None:
    place.mouth(name).parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 96, 96), dtype=np.uint8)
    np.savez_compressed(place.mouth(name), data=pixels)


def damage(place: Place, shard: str, offset: int, content: bytes) -> None:
    """Write other bytes into a tar."""
    path = place.store / f"{shard}.tar"
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(content)] = content
    path.write_bytes(whole)


def run(*words: object) -> int:
    """Call inspect-shards; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """Call inspect-shards --json; its exit code and the document, which is all of stdout."""
    capsys.readouterr()
    code = run(*words, "--json")
    return code, json.loads(capsys.readouterr().out)
