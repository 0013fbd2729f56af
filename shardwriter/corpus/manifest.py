"""The corpus manifest: mix.json, s1.json and s2.json of a split -> utterances and examples.

An utterance is one mouth npz. An example is a mixture and one of its two sources, so an utterance usually serves
several. Only this file parses the names of a corpus.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from iianet.config.fields import several
from iianet.config.schema import Config
from iianet.errors import ManifestError
from shardwriter.corpus.cache import cached_manifests
from shardwriter.corpus.lists import Lists, has_manifest, list_files, read_lists
from shardwriter.corpus.manifest_data import EXAMPLE_SCHEMA, ROWS_AT_A_TIME, UTTERANCE_SCHEMA, Manifest, arrange
from shardwriter.format.names import SPLITS, escape_key

__all__ = ["Manifest", "arrange", "is_listed", "load_manifests", "manifest_folders"]

logger = logging.getLogger(__name__)

KeyFrom = Literal["stem", "path"]


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
    folders = {split: named for split, named in manifest_folders(config).items() if split in splits or is_listed(named)}
    data = config.datamodule.data_config
    if data.key_from == "path" and data.data_root is None:
        raise ManifestError(
            "datamodule.data_config.key_from: path makes keys from the paths below data_root, which is not set; "
            "give datamodule.data_config.data_root or --data_root"
        )

    def parse() -> dict[str, Manifest]:
        lists = {split: {folder: read_lists(folder) for folder in named} for split, named in folders.items()}
        root = data_root(config, recorded_root, lists)
        return {split: _parse(split, lists[split], root, data.key_from) for split in splits}

    facts = {
        "splits": {split: list(map(str, named)) for split, named in folders.items()},
        "asked": list(splits),
        "data_root": data.data_root,
        "key_from": data.key_from,
        "working directory": str(Path.cwd()),
    }
    files = [path for named in folders.values() for folder in named for path in list_files(folder)]
    is_whole = all(map(Path.is_file, files))
    manifests = cached_manifests(files, facts, recorded_root, splits, parse) if is_whole else parse()
    _warn_of_other_names(manifests, folders)
    _warn_of_leaks(manifests)
    return manifests


def manifest_folders(config: Config) -> dict[str, tuple[Path, ...]]:
    """Folders of each split's three lists, one a corpus, relative to the working directory as in the reference."""
    data = config.datamodule.data_config
    named = {"train": data.train_dir, "val": data.valid_dir, "test": data.test_dir}
    return {split: tuple(map(Path, several(folders))) for split, folders in named.items()}


def is_listed(folders: Sequence[Path]) -> bool:
    """Whether a split's folders hold a corpus manifest, or one of them does; then the others are expected to."""
    return any(map(has_manifest, folders))


def data_root(config: Config, recorded_root: str | None, lists: Mapping[str, Mapping[Path, Lists]]) -> Path:
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
        for corpora in lists.values()
        for corpus in corpora.values()
        for rows in corpus.values()
        for row in rows
        for path in row[:-1]
    }
    if not folders or not all(os.path.isabs(folder) for folder in folders):
        return Path(recorded_root) if recorded_root else Path.cwd()
    common = Path(os.path.commonpath(folders))
    return Path(recorded_root) if recorded_root and common.is_relative_to(recorded_root) else common


def _parse(split: str, corpora: Mapping[Path, Lists], root: Path, key_from: KeyFrom) -> Manifest:
    relative = _relative_to(root)
    utterances: dict[str, list[str]] = {name: [] for name in UTTERANCE_SCHEMA.names}
    examples: dict[str, list[Any]] = {name: [] for name in EXAMPLE_SCHEMA.names}
    row_of: dict[str, int] = {}
    for folder, index, mix, *sources in _mixtures(corpora):
        for speaker, (wav, mouth, num_samples) in enumerate(sources, start=1):
            if num_samples != mix[1]:
                raise ManifestError(
                    f"{folder}: entry {index}: {mix[0]} has {mix[1]} samples and its source {wav} has {num_samples}; "
                    "entry i of mix.json, s1.json and s2.json must be one mixture. Make the lists again."
                )
            path = relative(mouth)
            key, name = _key_and_name(path, key_from)
            row = row_of.setdefault(key, len(row_of))
            if row == len(utterances["key"]):
                _append(utterances, key, name, path)
            elif utterances["mouth"][row] != path:
                raise ManifestError(
                    f"{folder}: {root / utterances['mouth'][row]} and {root / path} have one key, {key!r}. "
                    "Set datamodule.data_config.key_from: path (and data_root), so that keys are paths."
                )
            _append(examples, row, relative(mix[0]), relative(wav), speaker, num_samples)
    return arrange(
        split,
        root,
        pa.table(utterances, schema=UTTERANCE_SCHEMA),
        pa.table(examples, schema=EXAMPLE_SCHEMA),
    )


def _mixtures(corpora: Mapping[Path, Lists]) -> Iterator[tuple[Path, int, Any, Any, Any]]:
    """Folder, index, and rows of mix, s1 and s2 of each mixture of some corpora."""
    for folder, lists in corpora.items():
        for index, rows in enumerate(zip(lists["mix"], lists["s1"], lists["s2"], strict=True)):
            yield folder, index, *rows


def _append(columns: Mapping[str, list[Any]], *values: object) -> None:
    for column, value in zip(columns.values(), values, strict=True):
        column.append(value)


def _key_and_name(mouth: str, key_from: KeyFrom) -> tuple[str, str]:
    if key_from == "path" and mouth.startswith("../"):
        raise ManifestError(f"{mouth}: lies outside data_root, so key_from: path has no name for it; correct data_root")
    name = mouth.removesuffix(".npz") if key_from == "path" else os.path.splitext(os.path.basename(mouth))[0]
    return escape_key(name), name


def _relative_to(root: Path) -> Callable[[str], str]:
    """Makes paths relative to a root, posix; the folders repeat, so each is worked out once."""

    @cache
    def prefix(folder: str) -> str:
        absolute = os.path.join(root, folder)  # an absolute folder stays as it is
        relative = Path(os.path.relpath(absolute, root)).as_posix()
        return "" if relative == "." else f"{relative}/"

    def relative(path: str) -> str:
        folder, name = os.path.split(path)
        return prefix(folder) + name

    return relative


def _warn_of_other_names(manifests: Mapping[str, Manifest], folders: Mapping[str, Sequence[Path]]) -> None:
    for split, manifest in manifests.items():
        parts = manifest.examples.table.to_batches(max_chunksize=ROWS_AT_A_TIME)
        renamed = sum(pc.sum(pc.not_equal(_names(part, "mixture"), _names(part, "source"))).as_py() for part in parts)
        if renamed:
            logger.warning(
                "%s: %d sources are named otherwise than their mixture. That is fine if entry i of mix.json, s1.json "
                "and s2.json is one mixture; if the lists were sorted apart, it is not.",
                " and ".join(map(str, folders[split])),
                renamed,
            )


def _names(part: pa.RecordBatch, column: str) -> pa.Array:
    """File names of some paths."""
    return pc.replace_substring_regex(part[column], pattern="^.*/", replacement="")


def _warn_of_leaks(manifests: Mapping[str, Manifest]) -> None:
    for (one, first), (other, second) in combinations(manifests.items(), 2):
        keys = first.utterances.column("key")
        leaks = keys.filter(pc.is_in(keys, value_set=second.utterances.column("key")))
        if len(leaks):
            logger.warning(
                "%d utterances are in more than one split (%s is in %s and %s): what is learnt from one leaks into the "
                "other.",
                len(leaks),
                leaks[0],
                one,
                other,
            )
