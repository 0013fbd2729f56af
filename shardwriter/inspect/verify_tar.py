"""Read one tar whole and compare it with what its index says."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from iianet.errors import StoreError
from shardwriter.format.digest import digest_of
from shardwriter.format.index import ShardRecord
from shardwriter.format.members import open_tar
from shardwriter.format.names import TAR_SUFFIX, Identity, member_name
from shardwriter.format.strict_tar import StrictTarInfo
from shardwriter.inspect.contents import Entry
from shardwriter.inspect.verify_sample import verify_sample


def verify_tar(
    store: Path,
    record: ShardRecord,
    stored: Sequence[Entry],
    members: Sequence[str],
    identity: Identity,
    progress: Callable[[int], object],
) -> list[str]:
    """Check size, digest, headers and every sample of a tar.

    Args:
        store: The store.
        record: What the index says of the tar.
        stored: The index's rows that are in the tar, at least one.
        members: That each sample must have.
        identity: What the store's embeddings are.
        progress: Is told of bytes read.

    Returns:
        Problems, each naming the tar and, where it can be told, the key.
    """
    name = f"{record.shard}{TAR_SUFFIX}"
    try:
        with open_tar(store, record.shard) as tar:
            digest, size = digest_of(tar, progress)
            reached = [entry for entry in stored if _end(entry) <= size]
            headers = _headers(tar, stored) if len(reached) == len(stored) else []
            inside = [*headers, *(found for entry in reached for found in verify_sample(tar, entry, members, identity))]
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


def _headers(tar: IO[bytes], stored: Sequence[Entry]) -> list[str]:
    """Where the tar's own headers first contradict the index."""
    expected = [
        (entry, _place(member_name(entry.key, member), *place))
        for entry in stored
        for member, place in entry.members.items()
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
        with tarfile.TarFile(fileobj=tar, mode="r", tarinfo=StrictTarInfo) as archive:
            for member in archive:
                yield _place(member.name, member.offset_data, member.size)
    except tarfile.TarError:
        return


def _place(name: str, offset: int, size: int) -> str:
    return f"{name}, {size} bytes at {offset}"


def _end(entry: Entry) -> int:
    return max((place.offset + place.size for place in entry.members.values()), default=0)
