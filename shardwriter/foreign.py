"""Show tar shards that are no store of ours, read as WebDataset reads them. Nothing in them is ever unpickled."""

import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import webdataset
from braceexpand import braceexpand
from tabulate import tabulate
from tqdm import tqdm

from configs.errors import StoreError
from shardwriter.format import TAR_SUFFIX
from shardwriter.npy import read_npy_header
from shardwriter.summary import readable_bytes

FIRST_KEYS = 5
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(kw_only=True)
class Member:
    """All members of one name.

    Attributes:
        count: Samples that have it.
        bytes: Of all of them.
        dtype: Of the first, where it is an npy.
        shape: Of the first, where it is an npy.
        last_axis: Shortest and longest last axis, where they are npy.
        fields: Names in the first, where it is a JSON object.
    """

    count: int = 0
    bytes: int = 0
    dtype: str | None = None
    shape: list[int] | None = None
    last_axis: list[int] | None = None
    fields: list[str] | None = None


@dataclass(kw_only=True)
class ForeignShards:
    """What some tars hold.

    Attributes:
        shards: Their paths.
        samples: How many.
        first_keys: Keys of the first few.
        members: By name.
        problems: What could not be read.
    """

    shards: list[str]
    samples: int = 0
    first_keys: list[str] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def is_foreign(given: str) -> bool:
    """Whether a command was given tars instead of a store's folder."""
    if Path(given).is_dir():
        return False
    return Path(given).is_file() or "{" in given or given.endswith(TAR_SUFFIX) or _is_remote(given)


def expand(given: str) -> list[str]:
    """The tars of a path or a brace pattern, absolute.

    Raises:
        StoreError: One is missing, or is no local file: WebDataset would run `pipe:` as a command.
    """
    try:
        paths = [given] if Path(given).is_file() else list(braceexpand(given))
    except ValueError as error:
        raise StoreError(f"{given}: no pattern ({error}); expected one such as train-{{000000..000003}}.tar") from error
    for path in paths:
        if _is_remote(path):
            raise StoreError(f"{path}: URLs and pipes are refused, expected a file; copy the shards to this machine")
        if not Path(path).is_file():
            raise StoreError(f"{path}: no such file")
        if urlparse(os.path.abspath(path)).path != os.path.abspath(path):
            raise StoreError(f"{path}: WebDataset cannot open a name with ? # or ;, rename the file or its folder")
    return [os.path.abspath(path) for path in paths]


def _is_remote(path: str) -> bool:
    return path == "-" or _SCHEME.match(path) is not None


def read_foreign(shards: Sequence[str]) -> ForeignShards:
    """Read local tars whole, up to the first that is damaged."""
    found = ForeignShards(shards=list(shards))
    for sample in tqdm(_samples(found), desc="reading", unit="sample", delay=1.0, dynamic_ncols=True):
        found.samples += 1
        if len(found.first_keys) < FIRST_KEYS:
            found.first_keys.append(sample["__key__"])
        for name, content in sample.items():
            if not name.startswith("__"):
                _count(found, sample["__key__"], name, content)
    return found


def _samples(found: ForeignShards) -> Iterator[dict[str, Any]]:
    """Raw samples: bytes by member name. Whatever else the environment says, all shards are read, here."""
    for shard in found.shards:
        try:
            yield from webdataset.WebDataset(
                [shard], shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False
            )
        except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
            found.problems.append(f"{shard}: cannot be read to its end ({error.args[0] if error.args else error})")


def _count(found: ForeignShards, key: str, name: str, content: bytes) -> None:
    """Count a member, and look into it if it is npy or JSON; of others nothing but the size is known."""
    member = found.members.setdefault(name, Member())
    member.count += 1
    member.bytes += len(content)
    kind = name.rpartition(".")[2]
    try:
        if kind == "npy":
            _look_into_npy(member, content, f"{key}.{name}")
        elif kind == "json" and member.fields is None:
            value = json.loads(content)
            member.fields = list(value) if isinstance(value, dict) else None
    except StoreError as error:
        found.problems.append(str(error))
    except ValueError as error:
        found.problems.append(f"{key}.{name}: not JSON ({error})")


def _look_into_npy(member: Member, content: bytes, where: str) -> None:
    header = read_npy_header(content, where)
    if member.shape is None:
        member.dtype, member.shape = str(header.dtype), list(header.shape)
    if header.shape:
        length = header.shape[-1]
        shortest, longest = member.last_axis or (length, length)
        member.last_axis = [min(shortest, length), max(longest, length)]


def foreign_lines(found: ForeignShards) -> list[str]:
    """For people."""
    rows = [
        (name, f"{member.count:,}", readable_bytes(member.bytes), _first(member), _range(member.last_axis))
        for name, member in sorted(found.members.items())
    ]
    table = tabulate(
        rows,
        headers=["member", "samples", "bytes", "first", "last axis"],
        disable_numparse=True,
        colalign=("left", "right", "right", "left", "left") if rows else None,
    )
    keys = ", ".join(found.first_keys) + (", ..." if found.samples > len(found.first_keys) else "")
    counts = f"{found.samples:,} samples in {len(found.shards):,} shards"
    return [*table.splitlines(), "", f"{counts}; keys: {keys or 'none'}"]


def _first(member: Member) -> str:
    if member.shape is not None:
        return f"{tuple(member.shape)} {member.dtype}"
    return ", ".join(member.fields or [])


def _range(ends: list[int] | None) -> str:
    if ends is None:
        return ""
    return f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
