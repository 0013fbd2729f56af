"""The corpus manifest: mix.json, s1.json and s2.json of a split -> utterances and examples.

An utterance is one mouth npz. An example is a mixture and one of its two sources, so an utterance usually serves
several. Only this file parses the names of a corpus.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from configs.errors import ManifestError
from configs.schema import Config
from shardwriter.format import SPLITS, escape_key, hash_position

logger = logging.getLogger(__name__)

KeyFrom = Literal["stem", "path"]


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One mouth npz. `mouth` is relative to data_root."""

    key: str
    name: str
    mouth: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One source of one mixture. Paths of wavs are relative to data_root."""

    utterance: int
    mixture: str
    source: str
    speaker: int
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A split's utterances in hash order, and their examples, utterance by utterance.

    Attributes:
        split: train, val or test.
        data_root: Folder that every path is relative to.
        utterances: In hash order of their keys.
        examples: Those of utterance 0, then those of utterance 1, ...; within one, in the corpus' own order.
    """

    split: str
    data_root: Path
    utterances: Sequence[Utterance]
    examples: Sequence[Example]

    def digest(self) -> str:
        """Which examples there are, whatever the folders they lie in: 16 hexadecimal digits."""
        digest = xxhash.xxh3_64()
        for example in self.examples:
            key = self.utterances[example.utterance].key
            mixture = Path(example.mixture).name
            digest.update(f"{key}\t{mixture}\t{example.speaker}\t{example.num_samples}\n".encode())
        return str(digest.hexdigest())

    def utterance_of_example(self) -> npt.NDArray[np.int64]:
        """Index of each example's utterance, `(examples,)`."""
        return np.array([example.utterance for example in self.examples], dtype=np.int64)

    def num_samples(self) -> npt.NDArray[np.int64]:
        """Length of each example, samples, `(examples,)`."""
        return np.array([example.num_samples for example in self.examples], dtype=np.int64)


def arrange(split: str, data_root: Path, rows: Sequence[tuple[Utterance, Sequence[Example]]]) -> Manifest:
    """Put utterances and their examples (whose `utterance` is overwritten) into hash order."""
    ordered = sorted(rows, key=lambda row: (hash_position(row[0].key), row[0].key))
    examples = [
        Example(
            utterance=index,
            mixture=example.mixture,
            source=example.source,
            speaker=example.speaker,
            num_samples=example.num_samples,
        )
        for index, (_, own) in enumerate(ordered)
        for example in own
    ]
    return Manifest(
        split=split, data_root=data_root, utterances=[utterance for utterance, _ in ordered], examples=examples
    )


def load_manifests(
    config: Config, splits: Sequence[str] = SPLITS, recorded_root: str | None = None
) -> dict[str, Manifest]:
    """Read the manifests of some splits.

    Args:
        config: Names the folders, data_root and key_from.
        splits: Which to return. All that exist are read, since their paths together decide the default data_root.
        recorded_root: A store's data_root, which wins over the default one.

    Raises:
        ManifestError: One is missing or contradicts itself, or two npz of a split have one key.
    """
    folders = manifest_folders(config)
    present = {
        split: _read_lists(folder) for split, folder in folders.items() if split in splits or has_manifest(folder)
    }
    data = config.datamodule.data_config
    root = data_root(config, recorded_root, present)
    if data.key_from == "path" and data.data_root is None:
        raise ManifestError(
            "datamodule.data_config.key_from: path makes keys from the paths below data_root, which is not set; "
            "give datamodule.data_config.data_root or --data_root"
        )
    manifests = {split: _parse(split, folders[split], present[split], root, data.key_from) for split in splits}
    _warn_of_leaks(manifests)
    return manifests


def manifest_folders(config: Config) -> dict[str, Path]:
    """Folder of each split's three lists, relative to the working directory as in the reference."""
    data = config.datamodule.data_config
    return {"train": Path(data.train_dir), "val": Path(data.valid_dir), "test": Path(data.test_dir)}


def has_manifest(folder: Path) -> bool:
    """Whether a folder holds a corpus manifest."""
    return (folder / "mix.json").is_file()


Lists = Mapping[str, list[list[Any]]]


def data_root(config: Config, recorded_root: str | None, lists: Mapping[str, Lists]) -> Path:
    """Where relative paths start, and what the store's paths are relative to.

    As configured. Else, for relative lists, as the store recorded, or the working directory, as in the reference. Else,
    for absolute lists, as recorded where they lie below it (they do not when the corpus has moved), or their common
    ancestor.
    """
    configured = config.datamodule.data_config.data_root
    if configured is not None:
        return Path(os.path.abspath(configured))
    folders = {
        os.path.normpath(os.path.dirname(path))
        for split in lists.values()
        for rows in split.values()
        for row in rows
        for path in row[:-1]
    }
    if not folders or not all(os.path.isabs(folder) for folder in folders):
        return Path(recorded_root) if recorded_root else Path.cwd()
    common = Path(os.path.commonpath(folders))
    return Path(recorded_root) if recorded_root and common.is_relative_to(recorded_root) else common


_FIELDS = {"mix": (str, int), "s1": (str, str, int), "s2": (str, str, int)}
_EXPECTED = {"mix": "[wav, num_samples]", "s1": "[wav, mouth_npz, num_samples]", "s2": "[wav, mouth_npz, num_samples]"}


def _read_lists(folder: Path) -> Lists:
    lists = {name: _read_list(folder / f"{name}.json", name) for name in _FIELDS}
    lengths = {f"{name}.json": len(rows) for name, rows in lists.items()}
    if len(set(lengths.values())) != 1:
        raise ManifestError(
            f"{folder}: the lists differ in length ({lengths}); entry i of each must be one mixture. Make them again."
        )
    return lists


def _read_list(path: Path, name: str) -> list[list[Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(
            f"{path.absolute()}: cannot be read ({error.strerror}). Each split's folder holds mix.json, s1.json and "
            "s2.json, as IIANet's DataPreProcess scripts write them; mend train_dir, valid_dir or test_dir (from "
            "the working directory, not data_root), or run them first."
        ) from error
    except ValueError as error:
        raise ManifestError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise ManifestError(f"{path}: holds a {type(rows).__name__}; expected a list of {_EXPECTED[name]}")
    for index, row in enumerate(rows):
        types = tuple(type(value) for value in row) if isinstance(row, list) else None
        if types != _FIELDS[name]:
            raise ManifestError(f"{path}: entry {index} is {row!r}; expected {_EXPECTED[name]}")
    return rows


def _parse(split: str, folder: Path, lists: Lists, root: Path, key_from: KeyFrom) -> Manifest:
    relative = _Relative(root)
    rows: dict[str, tuple[Utterance, list[Example]]] = {}
    renamed = 0
    for index, (mix, *sources) in enumerate(zip(lists["mix"], lists["s1"], lists["s2"], strict=True)):
        for speaker, (wav, mouth, num_samples) in enumerate(sources, start=1):
            if num_samples != mix[1]:
                raise ManifestError(
                    f"{folder}: entry {index}: {mix[0]} has {mix[1]} samples and its source {wav} has {num_samples}; "
                    "entry i of mix.json, s1.json and s2.json must be one mixture. Make the lists again."
                )
            renamed += Path(wav).name != Path(mix[0]).name
            utterance = _utterance(relative(mouth), key_from)
            known, examples = rows.setdefault(utterance.key, (utterance, []))
            if known.mouth != utterance.mouth:
                raise ManifestError(
                    f"{folder}: {root / known.mouth} and {root / utterance.mouth} have one key, {utterance.key!r}. "
                    "Set datamodule.data_config.key_from: path (and data_root), so that keys are paths."
                )
            examples.append(
                Example(
                    utterance=-1,
                    mixture=relative(mix[0]),
                    source=relative(wav),
                    speaker=speaker,
                    num_samples=num_samples,
                )
            )
    if renamed:
        logger.warning(
            "%s: %d sources are named otherwise than their mixture. That is fine if entry i of mix.json, s1.json and "
            "s2.json is one mixture; if the lists were sorted apart, it is not.",
            folder,
            renamed,
        )
    return arrange(split, root, list(rows.values()))


def _utterance(mouth: str, key_from: KeyFrom) -> Utterance:
    if key_from == "path" and mouth.startswith("../"):
        raise ManifestError(f"{mouth}: lies outside data_root, so key_from: path has no name for it; mend data_root")
    name = mouth.removesuffix(".npz") if key_from == "path" else Path(mouth).stem
    return Utterance(key=escape_key(name), name=name, mouth=mouth)


class _Relative:
    """Paths relative to a root, posix; the folders repeat, so each is worked out once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in self.folders:
            absolute = os.path.join(self.root, folder)  # an absolute folder stays as it is
            self.folders[folder] = Path(os.path.relpath(absolute, self.root)).as_posix()
        known = self.folders[folder]
        return name if known == "." else f"{known}/{name}"


def _warn_of_leaks(manifests: Mapping[str, Manifest]) -> None:
    splits_of: dict[str, list[str]] = {}
    for split, manifest in manifests.items():
        for utterance in manifest.utterances:
            splits_of.setdefault(utterance.key, []).append(split)
    leaks = {key: splits for key, splits in splits_of.items() if len(splits) > 1}
    if leaks:
        key, splits = next(iter(leaks.items()))
        logger.warning(
            "%d utterances are in more than one split (%s is in %s): what is learnt from one leaks into the other.",
            len(leaks),
            key,
            " and ".join(splits),
        )
