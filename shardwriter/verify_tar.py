"""Read one tar whole and compare it with what its index says."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from configs.errors import StoreError
from shardwriter.contents import Entry
from shardwriter.format import EMBEDDING_MEMBER, METADATA_MEMBER, TAR_SUFFIX, Identity, member_name
from shardwriter.index import ShardRecord
from shardwriter.sample import open_tar, read_embedding, read_metadata

CHUNK_BYTES = 1 << 20


def verify_tar(
    store: Path, record: ShardRecord, stored: Sequence[Entry], identity: Identity, progress: Callable[[int], object]
) -> list[str]:
    """Check size, digest, headers and every sample of a tar.

    Args:
        store: The store.
        record: What the index says of the tar.
        stored: The index's rows that are in the tar, at least one.
        identity: What the store's embeddings are.
        progress: Is told of bytes read.

    Returns:
        Problems, each naming the tar and, where it can be told, the key.
    """
    name = f"{record.shard}{TAR_SUFFIX}"
    try:
        with open_tar(store, record.shard) as tar:
            digest, size = _digest(tar, progress)
            reached = [entry for entry in stored if _end(entry) <= size]
            headers = _headers(tar, stored) if len(reached) == len(stored) else []
            inside = [*headers, *_samples(tar, reached, identity)]
    except StoreError as error:
        return [str(error)]
    except OSError as error:
        return [f"{name}: cannot be read ({error.strerror})"]
    problems = []
    if size != record.tar_size:
        problems.append(f"{name}: has {size:,} bytes, its index says {record.tar_size:,}")
    elif digest != record.tar_digest:
        problems.append(f"{name}: {_changed(record, digest, stored, located=bool(inside))}")
    if lost := stored[len(reached) :]:
        problems.append(f"{lost[0].where}: lies beyond the end of the tar, first of {len(lost)} that do")
    return problems + inside


def _changed(record: ShardRecord, digest: str, stored: Sequence[Entry], located: bool) -> str:
    """The digest is of a whole tar: which value became another finite one cannot be told."""
    where = "" if located else f"; it may be any of {len(stored)} utterances, {stored[0].key} to {stored[-1].key}"
    return f"has changed since it was written (xxh3_64 {digest}, its index says {record.tar_digest}){where}"


def _digest(tar: IO[bytes], progress: Callable[[int], object]) -> tuple[str, int]:
    """xxh3_64 and size of a file."""
    digest, size = xxhash.xxh3_64(), 0
    while chunk := tar.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        progress(len(chunk))
    return str(digest.hexdigest()), size


def _headers(tar: IO[bytes], stored: Sequence[Entry]) -> list[str]:
    """Where the tar's own headers first contradict the index."""
    expected = [
        (entry, _place(member_name(entry.key, member), offset, length))
        for entry in stored
        for member, offset, length in (
            (EMBEDDING_MEMBER, entry.embedding_offset, entry.embedding_length),
            (METADATA_MEMBER, entry.metadata_offset, entry.metadata_length),
        )
    ]
    present = list(_places(tar))
    for index, (entry, place) in enumerate(expected):
        there = present[index] if index < len(present) else "not readable"
        if there != place:
            return [f"{entry.where}: header {index} of the tar is {there}; its index says {place}"]
    if len(present) > len(expected):
        return [f"{stored[-1].where}: is followed by {present[len(expected)]}, which its index lacks"]
    return []


def _places(tar: IO[bytes]) -> Iterator[str]:
    """The members that the tar's headers tell of, up to the first unreadable header."""
    tar.seek(0)
    try:
        with tarfile.TarFile(fileobj=tar, mode="r") as archive:
            for member in archive:
                yield _place(member.name, member.offset_data, member.size)
    except tarfile.TarError:
        return


def _place(name: str, offset: int | None, length: int | None) -> str:
    return f"{name}, {length} bytes at {offset}"


def _samples(tar: IO[bytes], stored: Sequence[Entry], identity: Identity) -> list[str]:
    """What is wrong with the contents of members."""
    problems = []
    for entry in stored:
        for check in (_embedding, _metadata):
            try:
                problem = check(tar, entry, identity)
            except StoreError as error:
                problem = str(error).removeprefix(f"{entry.where}: ")
            if problem is not None:
                problems.append(f"{entry.where}: {problem}")
    return problems


def _embedding(tar: IO[bytes], entry: Entry, identity: Identity) -> str | None:
    embedding = read_embedding(tar, entry)
    expected = (identity.dim, entry.frames)
    if embedding.shape != expected or str(embedding.dtype) != identity.dtype:
        return f"{EMBEDDING_MEMBER}: is {embedding.shape} {embedding.dtype}; expected {expected} {identity.dtype}"
    if wrong := int(embedding.size - np.isfinite(embedding).sum()):
        return f"{EMBEDDING_MEMBER}: has {wrong} values that are not finite"
    return None


def _metadata(tar: IO[bytes], entry: Entry, identity: Identity) -> str | None:
    metadata = read_metadata(tar, entry)
    for name, expected in (("frames", entry.frames), ("fps", identity.fps)):
        if metadata.get(name, expected) != expected:  # a store of somebody's own embeddings may say neither
            return f"{METADATA_MEMBER}: says {name} {metadata[name]!r}; expected {expected}"
    return None


def _end(entry: Entry) -> int:
    assert entry.metadata_offset is not None and entry.metadata_length is not None, entry
    return entry.metadata_offset + entry.metadata_length
