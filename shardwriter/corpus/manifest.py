"""The corpus manifest: mix.json, s1.json and s2.json of a split -> utterances and examples.

An utterance is one mouth npz. An example is a mixture and one of its two sources, so an utterance usually serves
several. Only this file parses the names of a corpus.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iianet.config.fields import several
from iianet.config.schema import Config
from iianet.errors import ManifestError
from iianet.wording import counted, printable
from shardwriter.corpus.cache import cached_manifests
from shardwriter.corpus.lists import Lists, has_manifest, list_files, read_lists
from shardwriter.corpus.manifest_data import EXAMPLE_SCHEMA, ROWS_AT_A_TIME, UTTERANCE_SCHEMA, Manifest, arrange
from shardwriter.format.names import SPLITS, escape_key

__all__ = ["Manifest", "arrange", "is_listed", "load_manifests", "manifest_folders"]

logger = logging.getLogger(__name__)

KeyFrom = Literal["stem", "path"]
SHOWN_NAMES = 3
"""Names that a warning gives."""


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
        if _has_surrogates(str(root)):
            raise ManifestError(f"{printable(root)}: data_root has a name that is not UTF-8; rename the folder")
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
    for split, manifest in manifests.items():
        for sentence in manifest.left_out:
            logger.warning("%s: %s", split, sentence)
        _warn_of_repetitions(manifest)
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
    relative = sorted(folder for folder in folders if not os.path.isabs(folder))
    if relative and len(relative) < len(folders) and not recorded_root:
        raise ManifestError(
            f"the lists name some files by whole paths (in {min(folders.difference(relative))}) and some by relative "
            f"ones (in {relative[0] or '.'}), and nothing says where these start; give --data_root, or make the lists "
            "again with paths of one kind"
        )
    if relative or not folders:
        return Path(recorded_root) if recorded_root else Path.cwd()
    common = Path(os.path.commonpath(folders))
    return Path(recorded_root) if recorded_root and common.is_relative_to(recorded_root) else common


def _parse(split: str, corpora: Mapping[Path, Lists], root: Path, key_from: KeyFrom) -> Manifest:
    relative = _relative_to(root)
    utterances: dict[str, list[str]] = {name: [] for name in UTTERANCE_SCHEMA.names}
    examples: dict[str, list[Any]] = {name: [] for name in EXAMPLE_SCHEMA.names}
    row_of: dict[str, int] = {}
    left_out: dict[str, list[str]] = {}
    for folder, index, mix, *sources in _mixtures(corpora):
        if reason := _unusable(mix, sources):
            left_out.setdefault(reason, []).append(f"{folder}: entry {index}: {_shown(mix, sources)}")
            continue
        for speaker, (wav, mouth, num_samples) in enumerate(sources, start=1):
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
    arranged = arrange(
        split,
        root,
        pa.table(utterances, schema=UTTERANCE_SCHEMA),
        pa.table(examples, schema=EXAMPLE_SCHEMA),
    )
    total = sum(len(lists["mix"]) for lists in corpora.values())
    sentences = [
        f"{len(some)} of {counted(total, 'mixture')} left out: {reason} (e.g. {some[0]})"
        for reason, some in left_out.items()
    ]
    if shared := _named_by_several(corpora):
        folders = " and ".join(map(str, corpora))
        sentences.append(
            f"the lists of {folders} name {counted(len(shared), 'wav')} alike, by relative paths (e.g. {shared[0]}), "
            f"which all start at {root}, so one file stands for both. Where each corpus has a folder of its own, "
            "make its lists with whole paths"
        )
    if 2 * sum(map(len, left_out.values())) > total:
        raise ManifestError(f"{split}: {'; '.join(sentences)}. Make the lists again.")
    return replace(arranged, left_out=tuple(sentences))


def _named_by_several(corpora: Mapping[Path, Lists]) -> list[str]:
    """Relative paths of wavs that the lists of more than one corpus name."""
    if len(corpora) == 1:
        return []
    named = [{row[0] for rows in lists.values() for row in rows} for lists in corpora.values()]
    counts = Counter(path for paths in named for path in paths if not os.path.isabs(path))
    return sorted(path for path, count in counts.items() if count > 1)


def _unusable(mix: Sequence[Any], sources: Sequence[Sequence[Any]]) -> str | None:
    """Why a mixture can be no example, None where it can."""
    if any(source[-1] != mix[-1] for source in sources):
        return "different in length from their sources; entry i of mix.json, s1.json and s2.json must be one mixture"
    names = [mix[0], *(name for source in sources for name in source[:2])]
    if any(not name.isascii() and not name.isprintable() and _has_surrogates(name) for name in names):
        return "with names that are not UTF-8; rename the files"
    if any(source[1].endswith("/") or not source[1] for source in sources):
        return "without a mouth"
    return None


def _has_surrogates(name: str) -> bool:
    """Whether a name holds bytes that are no UTF-8, as `surrogateescape` has them."""
    return any("\ud800" <= character <= "\udfff" for character in name)


def _shown(mix: Sequence[Any], sources: Sequence[Sequence[Any]]) -> str:
    """A mixture for a message."""
    lengths = " and ".join(f"{wav} has {num_samples}" for wav, _, num_samples in sources)
    return printable(f"{mix[0]} has {mix[1]} samples, its source {lengths}")


def _warn_of_repetitions(manifest: Manifest) -> None:
    """Warn of mixtures that are listed twice, and of those whose two sources are one mouth."""
    examples = manifest.examples
    mixtures = examples.column("mixture").dictionary_encode()
    pairs = manifest.utterance_of_example() * len(mixtures.dictionary) + mixtures.indices.to_numpy()
    listed, counts = np.unique(2 * pairs + examples.numbers("speaker") - 1, return_counts=True)
    mouths, sources = np.unique(listed // 2, return_counts=True)
    for repeated, what in (
        (listed[counts > 1] // 2, "listed more than once, which count as often in training"),
        (mouths[sources > 1], "of one mouth with itself, which does not say what is to be heard"),
    ):
        numbers = np.unique(repeated % max(1, len(mixtures.dictionary)))
        if len(numbers):
            names = ", ".join(str(mixtures.dictionary[int(number)]) for number in numbers[:SHOWN_NAMES])
            logger.warning("%s: %s %s (e.g. %s)", manifest.split, counted(len(numbers), "mixture"), what, names)


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
