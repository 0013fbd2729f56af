"""Read one tar whole, and compare it, and each of its samples, with what its index says and with what the store is."""

import tarfile
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from iianet.errors import StoreError
from shardwriter.format.digest import CHUNK_BYTES, digest_of
from shardwriter.format.index import Entry, ShardRecord
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    METADATA_MEMBER,
    SCALE_MEMBER,
    member_name,
    tar_name,
)
from shardwriter.format.npy import NPY_HEADER_BYTES, read_npy, read_npy_header
from shardwriter.format.record import Identity
from shardwriter.format.sample import AUDIO_DTYPES, read_member, read_metadata
from shardwriter.format.tar import BLOCK_BYTES, NAME_BYTES, member_info
from shardwriter.inspect.inspected import InspectedStore


def verify_tar(
    store: InspectedStore, record: ShardRecord, stored: Sequence[Entry], progress: Callable[[int], object]
) -> list[str]:
    """Check size, digest, headers and every sample of a tar.

    Args:
        store: That it belongs to.
        record: What the index says of the tar.
        stored: The index's rows that are in the tar, at least one.
        progress: Counts bytes read.

    Returns:
        Problems, each naming the tar and, where it is known, the key.
    """
    name = tar_name(record.shard)
    try:
        with store.snapshot.open_tar(record, check=False) as tar:
            digest, size = digest_of(tar, progress)
            reached = [entry for entry in stored if _end(entry) <= size]
            headers = _headers(tar, stored) if len(reached) == len(stored) else []
            inside = [*headers, *(found for entry in reached for found in verify_sample(tar, entry, store.identity))]
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
    """The digest is of a whole tar: it does not say which value became another finite one."""
    where = "" if located else f"; it may be any of {len(stored)} utterances, {stored[0].key} to {stored[-1].key}"
    return f"has changed since it was written (xxh3_64 {digest}, its index says {record.tar_digest}){where}"


def _headers(tar: IO[bytes], stored: Sequence[Entry]) -> list[str]:
    """Where the tar first has something else than the members that the index lists, one behind the other."""
    end, number = 0, 0
    for entry in stored:
        for member, (offset, size) in entry.members.items():
            name = member_name(entry.key, member)
            tar.seek(end)
            found = tar.read(BLOCK_BYTES)
            if offset != end + BLOCK_BYTES or found != _header(name, size):
                there = found[:NAME_BYTES].rstrip(b"\0")
                return [
                    f"{entry.where}: header {number} of the tar, at byte {end:,}, is of {there!r} and not as stores "
                    f"write that of {name}; its index says {size:,} bytes at {offset:,}"
                ]
            end, number = offset + size + -size % BLOCK_BYTES, number + 1
    tar.seek(end)
    if any(piece.strip(b"\0") for piece in iter(lambda: tar.read(CHUNK_BYTES), b"")):
        return [f"{stored[-1].where}: is followed by something at byte {end:,}, which its index lacks"]
    return []


def _header(name: str, size: int) -> bytes | None:
    """What a store writes before a member; None where no tar of a store can hold one so large."""
    try:
        return member_info(name, size).tobuf(tarfile.USTAR_FORMAT)
    except ValueError:
        return None


def _end(entry: Entry) -> int:
    return max((place.offset + place.size for place in entry.members.values()), default=0)


def verify_sample(tar: IO[bytes], entry: Entry, identity: Identity) -> list[str]:
    """What is wrong with a sample, each problem naming tar and key.

    Args:
        tar: Its shard.
        entry: Its row of the index.
        identity: What the store's embeddings are.
    """
    members = identity.members(entry.split)
    if tuple(entry.members) != members:
        listed = ", ".join(entry.members) or "nothing"
        return [f"{entry.where}: its index lists {listed}; expected {', '.join(members)}"]
    problems = []
    for member in members:
        try:
            problem = _CHECKS[member](tar, entry, identity)
        except StoreError as error:
            problem = str(error).removeprefix(f"{entry.where}: ").removeprefix(f"{member}: ")
        if problem is not None:
            problems.append(f"{entry.where}: {member}: {problem}")
    return problems


def _read_npy(tar: IO[bytes], entry: Entry, member: str) -> npt.NDArray[Any]:
    """An npy member, which must lie as stores write it: readers take the values from a fixed distance, row by row."""
    content, where = read_member(tar, entry, member), f"{entry.where}: {member}"
    header = read_npy_header(content, where)
    is_version_1 = content[6:8] == b"\x01\x00"
    if not is_version_1 or header.data_offset != NPY_HEADER_BYTES or header.column_major:
        raise StoreError(f"{where}: an npy of another layout than stores have")
    return read_npy(content, where)


def _embedding(tar: IO[bytes], entry: Entry, identity: Identity) -> str | None:
    embedding = _read_npy(tar, entry, EMBEDDING_MEMBER)
    expected = (identity.dim, entry.frames)
    if embedding.shape != expected or str(embedding.dtype) != identity.dtype:
        return f"is {embedding.shape} {embedding.dtype}; expected {expected} {identity.dtype}"
    return _not_finite(embedding)


def _scale(tar: IO[bytes], entry: Entry, identity: Identity) -> str | None:
    scale = _read_npy(tar, entry, SCALE_MEMBER)
    if scale.shape != (identity.dim,) or scale.dtype != np.float32:
        return f"is {scale.shape} {scale.dtype}; expected ({identity.dim},) float32"
    wrong = int((scale <= 0).sum())
    return _not_finite(scale) or (f"has {wrong} values that are not above 0" if wrong else None)


def _audio(tar: IO[bytes], entry: Entry, _identity: Identity) -> str | None:
    audio = _read_npy(tar, entry, AUDIO_MEMBER)
    if audio.ndim != 1 or str(audio.dtype) not in AUDIO_DTYPES:
        return f"is {audio.shape} {audio.dtype}; expected 1 axis of {', '.join(AUDIO_DTYPES)}"
    try:
        expected = 2 * sum(int(example["num_samples"]) for example in read_metadata(tar, entry)["audio"])
    except (StoreError, KeyError, TypeError, ValueError):
        return f"has {len(audio):,} samples, but {METADATA_MEMBER} does not say how many there should be"
    if len(audio) != expected:
        return (
            f"has {len(audio):,} samples; expected {expected:,}, the sources and mixtures that {METADATA_MEMBER} lists"
        )
    return _not_finite(audio)


def _not_finite(values: Any) -> str | None:
    wrong = int(values.size - np.isfinite(values).sum())
    return f"has {wrong} values that are not finite" if wrong else None


def _metadata(tar: IO[bytes], entry: Entry, identity: Identity) -> str | None:
    metadata = read_metadata(tar, entry)
    for name, expected in (("frames", entry.frames), ("fps", identity.fps)):
        if metadata.get(name, expected) != expected:  # a store of somebody's own embeddings may say neither
            return f"says {name} {metadata[name]!r}; expected {expected}"
    return None


_CHECKS = {EMBEDDING_MEMBER: _embedding, SCALE_MEMBER: _scale, METADATA_MEMBER: _metadata, AUDIO_MEMBER: _audio}
