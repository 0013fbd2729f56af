"""Parsed manifests of large corpora, kept in the user's cache folder: their JSON takes long and much memory to read.

The folder is $XDG_CACHE_HOME/iianet-shards, by default ~/.cache/iianet-shards. It may be deleted at any time.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import xxhash

from iianet.errors import StoreError
from shardwriter.corpus.manifest_data import EXAMPLE_SCHEMA, UTTERANCE_SCHEMA, Examples, Manifest, Utterances
from shardwriter.format.digest import digest_of
from shardwriter.format.files import atomic_file
from shardwriter.format.table import decode_table, encode_table, reading

logger = logging.getLogger(__name__)

SMALLEST = 16 << 20
"""Bytes of lists below which they are read each time."""
_VERSION = 5
_ROOT, _LEFT_OUT = "data_root", "left_out"


def cached_manifests(
    files: Sequence[Path],
    facts: Mapping[str, object],
    recorded_root: str | None,
    splits: Sequence[str],
    parse: Callable[[], dict[str, Manifest]],
) -> dict[str, Manifest]:
    """What `parse` returns, or returned when the files and facts were the same.

    What was parsed before there was a store, which is where the store has its data_root from, is the same, too.

    Args:
        files: That are parsed; what is in them tells whether they have changed, for times can be set.
        facts: What else the manifests follow from; values that JSON can hold.
        recorded_root: A store's data_root, if there is one; a fact as well.
        splits: Keys of what `parse` returns.
        parse: Reads the files.
    """
    if sum(path.stat().st_size for path in files) < SMALLEST or not cache_folder().is_absolute():
        return parse()
    known = [_VERSION, [_digest(path) for path in files], facts]
    for root in dict.fromkeys((recorded_root, None)):
        kept = _read_all(_stem(known, root), splits)
        if kept and (root == recorded_root or all(str(found.data_root) == recorded_root for found in kept.values())):
            return kept
    manifests, stem = parse(), _stem(known, recorded_root)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for manifest in manifests.values():
            _write(stem, manifest)
    except OSError as error:
        logger.info("%s: the parsed manifest is not kept (%s); the lists are read anew each time", stem, error)
    return manifests


def _stem(known: object, recorded_root: str | None) -> Path:
    identity = json.dumps([known, recorded_root], sort_keys=True)
    return cache_folder() / f"manifest-{xxhash.xxh3_64_hexdigest(identity.encode())}"


def _read_all(stem: Path, splits: Sequence[str]) -> dict[str, Manifest] | None:
    """What is kept; None where nothing is."""
    try:
        with reading(str(stem), "a parsed manifest", "The lists are read anew."):
            return {split: _read(stem, split) for split in splits}
    except FileNotFoundError:
        return None
    except StoreError as error:
        logger.warning("%s", error)
        return None


def cache_folder() -> Path:
    """Where parsed manifests are kept; a relative path for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "iianet-shards"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return digest_of(stream)[0]


def _path(stem: Path, split: str, what: str) -> Path:
    return stem.with_name(f"{stem.name}-{split}-{what}.parquet")


def _read(stem: Path, split: str) -> Manifest:
    with _path(stem, split, "utterances").open("rb") as stream:
        utterances, facts = decode_table(stream, UTTERANCE_SCHEMA)
    with _path(stem, split, "examples").open("rb") as stream:
        examples, _ = decode_table(stream, EXAMPLE_SCHEMA)
    return Manifest(
        split=split,
        data_root=Path(facts[_ROOT]),
        utterances=Utterances(utterances),
        examples=Examples(examples),
        left_out=tuple(facts[_LEFT_OUT]),
    )


def _write(stem: Path, manifest: Manifest) -> None:
    facts = {_ROOT: str(manifest.data_root), _LEFT_OUT: manifest.left_out}
    for what, table in (("examples", manifest.examples.table), ("utterances", manifest.utterances.table)):
        with atomic_file(_path(stem, manifest.split, what)) as stream:
            stream.write(encode_table(table, facts))
