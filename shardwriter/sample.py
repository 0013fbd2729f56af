"""One stored sample: its members read back, and all that is known of it."""

import difflib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from configs.errors import StoreError
from shardwriter.contents import Contents, Entry
from shardwriter.format import EMBEDDING_MEMBER, METADATA_MEMBER, TAR_SUFFIX, escape_key, unescape_key
from shardwriter.npy import read_npy

NEAREST_KEYS = 3


@contextmanager
def open_tar(store: Path, shard: str) -> Iterator[IO[bytes]]:
    """Open a shard for reading. Raises StoreError where it cannot be."""
    path = store / f"{shard}{TAR_SUFFIX}"
    try:
        stream = path.open("rb")
    except OSError as error:
        raise StoreError(f"{path.name}: cannot be opened ({error.strerror})") from error
    with stream:
        yield stream


def read_embedding(tar: IO[bytes], entry: Entry) -> npt.NDArray[Any]:
    """Read an embedding, `(dim, frames)` in the store's dtype, if the tar holds one there.

    Raises:
        StoreError: What is there is no npy, or is cut.
    """
    content = _member(tar, entry, entry.embedding_offset, entry.embedding_length)
    return read_npy(content, f"{entry.where}: {EMBEDDING_MEMBER}")


def read_metadata(tar: IO[bytes], entry: Entry) -> dict[str, Any]:
    """Read a sample's json member. Raises StoreError where it is no JSON object."""
    content = _member(tar, entry, entry.metadata_offset, entry.metadata_length)
    try:
        metadata = json.loads(content, parse_constant=_refuse_constant)
    except ValueError as error:
        raise StoreError(f"{entry.where}: {METADATA_MEMBER}: not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise StoreError(f"{entry.where}: {METADATA_MEMBER}: a {type(metadata).__name__}; expected an object")
    return metadata


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is none of its values, though Python writes it")


def _member(tar: IO[bytes], entry: Entry, offset: int | None, length: int | None) -> bytes:
    assert offset is not None and length is not None, entry
    tar.seek(offset)
    content = tar.read(length)
    if len(content) != length:
        raise StoreError(f"{entry.where}: the tar ends before byte {offset + length:,}, where the index says it ends")
    return content


@dataclass(frozen=True, kw_only=True)
class Sample:
    """All that is known of one utterance of a split.

    Attributes:
        entry: Its newest row of an index.
        metadata: What its json member says; None where it is not stored.
        embedding: `(dim, frames)`; None where it is not stored.
        seconds: Length.
    """

    entry: Entry
    metadata: dict[str, Any] | None
    embedding: npt.NDArray[Any] | None
    seconds: float

    def facts(self) -> dict[str, Any]:
        """For people and for programs, in the order to be shown."""
        entry = self.entry
        facts: dict[str, Any] = {"key": entry.key, "utterance": unescape_key(entry.key)}
        if self.metadata is not None:
            facts["utterance"] = self.metadata.get("utterance", facts["utterance"])
        facts |= {"split": entry.split, "shard": entry.shard, "mouth": entry.mouth, "error": entry.error}
        if self.embedding is None:
            return facts
        members = {
            EMBEDDING_MEMBER: {"offset": entry.embedding_offset, "size": entry.embedding_length},
            METADATA_MEMBER: {"offset": entry.metadata_offset, "size": entry.metadata_length},
        }
        return {
            **facts,
            "members": members,
            "shape": list(self.embedding.shape),
            "dtype": str(self.embedding.dtype),
            **_statistics(self.embedding),
            "frames": entry.frames,
            "seconds": self.seconds,
            "metadata": self.metadata,
        }


def find_samples(contents: Contents, given: str) -> list[Sample]:
    """The samples of a key, one for each split that has it; the utterance's unescaped name does as well.

    Raises:
        StoreError: No split has it, or what is stored cannot be read.
    """
    held = [
        (split, next(key for key in (given, escape_key(given)) if key in catalog.newest))
        for split, catalog in contents.splits.items()
        if given in catalog.newest or escape_key(given) in catalog.newest
    ]
    if not held:
        raise StoreError(_unknown(contents, given))
    return [read_sample(contents, contents.entry(split, key)) for split, key in held]


def read_sample(contents: Contents, entry: Entry) -> Sample:
    """Read a sample whole. Raises StoreError where it is stored but cannot be read."""
    seconds = entry.frames / contents.identity.fps
    if entry.error is not None:
        return Sample(entry=entry, metadata=None, embedding=None, seconds=seconds)
    with open_tar(contents.store, entry.shard) as tar:
        metadata, embedding = read_metadata(tar, entry), read_embedding(tar, entry)
    return Sample(entry=entry, metadata=metadata, embedding=embedding, seconds=seconds)


def sample_lines(sample: Sample) -> list[str]:
    """A sample for people."""
    facts = sample.facts()
    members, metadata = facts.pop("members", None), facts.pop("metadata", None)
    lines = [f"{name:<10} {_shown(value)}" for name, value in facts.items() if value is not None]
    for name, place in (members or {}).items():
        lines.append(f"{'member':<10} {name}: {place['size']:,} bytes at {place['offset']:,}")
    if metadata is not None:
        lines += ["", *json.dumps(metadata, indent=2, ensure_ascii=False).splitlines()]
    return lines


def _statistics(embedding: npt.NDArray[Any]) -> dict[str, float | None]:
    """Over all values; None where one is not finite, since JSON has no word for that."""
    values = embedding.astype(np.float64)
    found = {
        "min": values.min(initial=math.inf),
        "max": values.max(initial=-math.inf),
        "mean": values.mean() if values.size else math.nan,
        "std": values.std() if values.size else math.nan,
    }
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(tuple(value)) if isinstance(value, list) else str(value)


def _unknown(contents: Contents, given: str) -> str:
    key = escape_key(given)
    planned = {split: contents.planned_rows(split)["key"].to_pylist() for split in contents.catalog.splits}
    for split, keys in planned.items():
        if given in keys or key in keys:
            return f"--key {given}: is planned for {split} but not stored yet; run build-shards to go on"
    near = _nearest(key, [other for keys in planned.values() for other in keys])
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    return f"--key {given}: {contents.store} has no such utterance{hint}"


def _nearest(key: str, known: Sequence[str]) -> list[str]:
    names = dict.fromkeys(known)
    return difflib.get_close_matches(key, names, n=NEAREST_KEYS) or sorted(names)[:NEAREST_KEYS]
