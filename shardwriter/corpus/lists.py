"""mix.json, s1.json and s2.json of a split, as IIANet's preparation scripts write them."""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iianet.errors import ManifestError
from iianet.regular_file import content_of

Lists = Mapping[str, list[list[Any]]]
"""Rows of mix, s1 and s2; row i of the three is one mixture."""

_FIELDS = {"mix": (str, int), "s1": (str, str, int), "s2": (str, str, int)}
_EXPECTED = {"mix": "[wav, num_samples]", "s1": "[wav, mouth_npz, num_samples]", "s2": "[wav, mouth_npz, num_samples]"}

_MOST_BYTES = 2 << 30
"""Bytes of the longest list that is read: millions of mixtures."""
_MOST_SAMPLES = 1 << 31
"""Samples of the longest recording that a list may name: a day and a half."""


def has_manifest(folder: Path) -> bool:
    """Whether a folder holds a corpus manifest."""
    return (folder / "mix.json").is_file()


def list_files(folder: Path) -> list[Path]:
    """The three lists of a split."""
    return [folder / f"{name}.json" for name in _FIELDS]


def read_lists(folder: Path) -> Lists:
    """Read the three lists of a split.

    Raises:
        ManifestError: One is missing, or they are no such lists.
    """
    lists = {name: _read_list(folder / f"{name}.json", name) for name in _FIELDS}
    lengths = {f"{name}.json": len(rows) for name, rows in lists.items()}
    if len(set(lengths.values())) != 1:
        raise ManifestError(
            f"{folder}: the lists differ in length ({lengths}); entry i of each must be one mixture. Make them again."
        )
    return lists


def _read_list(path: Path, name: str) -> list[list[Any]]:
    try:
        content, _ = content_of(path, _MOST_BYTES)
        if not content.strip():
            raise ValueError("the file is empty")
        # In UTF-8 or, as PowerShell writes, in UTF-16; with a byte order mark or without.
        rows = json.loads(content.decode(json.detect_encoding(content), "surrogateescape"))
    except OSError as error:
        raise ManifestError(
            f"{path.absolute()}: cannot be read ({error.strerror}). Each split's folder holds mix.json, s1.json and "
            "s2.json, as IIANet's DataPreProcess scripts write them; correct train_dir, valid_dir or test_dir (from "
            "the working directory, not data_root), or run them first. Without lists for a split, build the others: "
            "build-shards --data_split train."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{path}: not JSON ({error}); expected a list of {_EXPECTED[name]}. Make the lists again"
        ) from error
    if not isinstance(rows, list):
        raise ManifestError(f"{path}: holds a {type(rows).__name__}; expected a list of {_EXPECTED[name]}")
    for index, row in enumerate(rows):
        types = tuple(type(value) for value in row) if isinstance(row, list) else None
        if types != _FIELDS[name] or not 1 <= row[-1] <= _MOST_SAMPLES:
            raise ManifestError(f"{path}: entry {index} is {reprlib.repr(row)}; expected {_EXPECTED[name]}")
        if any("\\" in name and "/" not in name for name in row[:-1]):
            raise ManifestError(
                f"{path}: entry {index} is {row!r}, with the backslashes of Windows; expected paths of this machine. "
                "Write / for each backslash, and for the drive the folder where the corpus lies here."
            )
    return rows
