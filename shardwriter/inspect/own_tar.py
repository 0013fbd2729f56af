"""Read a tar of a store without its index, and refuse it where it is not as the store wrote it."""

import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from iianet.errors import StoreError
from shardwriter.corpus.embedding_npz import embedding_path
from shardwriter.format.digest import digest_of
from shardwriter.format.index import MEMBER_COLUMNS, Entry, entries_of, index_table
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    KEY_BYTES,
    METADATA_MEMBER,
    STORED_DTYPES,
    VIEW_MARK,
    ShardName,
    escape_key,
    parse_view_split,
    split_view_key,
    tar_name,
    unescape_key,
    view_key,
)
from shardwriter.format.record import Identity
from shardwriter.format.sample import audio_entries, fps_of, read_array, read_metadata
from shardwriter.format.tar import OwnTarInfo
from shardwriter.inspect.verify_shard import verify_sample
from shardwriter.store.identity import UNKNOWN_ENCODER, is_reindexed

_KEY = re.compile(rf"[A-Za-z0-9_%-]{{1,{KEY_BYTES}}}")
_POSITIONS = {member: position for position, member in enumerate(MEMBER_COLUMNS)}


@dataclass(frozen=True, kw_only=True)
class OwnTar:
    """A tar of a store.

    Attributes:
        name: What the name of its shard says.
        size: Bytes.
        digest: xxh3_64, hexadecimal.
        index: Rows of `INDEX_SCHEMA`, in the order of the tar.
        planned: Rows of `PLAN_SCHEMA` in the same order, without the number of the shard.
    """

    name: ShardName
    size: int
    digest: str
    index: pa.Table
    planned: list[dict[str, Any]]


def read_own_tar(folder: Path, name: ShardName, identity: Identity) -> OwnTar:
    """Read and check every byte of a tar.

    Args:
        folder: Where it lies.
        name: What its name says.
        identity: What the store's embeddings are.

    Raises:
        StoreError: It is damaged, or holds something that a store of this identity does not.
    """
    rows, planned = [], []
    with _opened(folder, name) as (stream, entries):
        for entry in entries:
            if tuple(entry.members) != identity.members(name.split):
                raise _foreign(entry.where, ", ".join(entry.members))
            embedding = read_array(stream, entry, EMBEDDING_MEMBER)
            found = replace(entry, frames=embedding.shape[-1] if embedding.ndim else 0)
            if problems := verify_sample(stream, found, identity):
                raise StoreError(problems[0])
            row, plan_row = _rows(found, read_metadata(stream, found), identity)
            rows.append(row)
            planned.append(plan_row)
        stream.seek(0)
        digest, size = digest_of(stream)
    return OwnTar(name=name, size=size, digest=digest, index=index_table(rows), planned=planned)


def shown_identity(folder: Path, name: ShardName) -> Identity:
    """What the first sample of a tar shows of the store; its encoder is unknown. Raises as `read_own_tar`."""
    with _opened(folder, name) as (stream, (entry, *_)):
        if not {EMBEDDING_MEMBER, METADATA_MEMBER} <= entry.members.keys():
            raise _foreign(entry.where, ", ".join(entry.members))
        embedding, fps = read_array(stream, entry, EMBEDDING_MEMBER), fps_of(read_metadata(stream, entry))
        if embedding.ndim != 2 or embedding.dtype.name not in STORED_DTYPES:
            raise _foreign(entry.where, f"an embedding of {embedding.shape} {embedding.dtype}")
        return Identity(
            encoder=UNKNOWN_ENCODER,
            dtype=embedding.dtype.name,
            dim=len(embedding),
            fps=25.0 if fps is None else fps,
            audio="embed" if AUDIO_MEMBER in entry.members else "path",
        )


@contextmanager
def _opened(folder: Path, name: ShardName) -> Iterator[tuple[IO[bytes], list[Entry]]]:
    """Open a tar, and find its samples. An error about it says in which folder it lies, and the cure."""
    try:
        with (folder / tar_name(str(name))).open("rb") as stream:
            yield stream, _entries(name, stream)
    except StoreError as error:
        raise StoreError(f"{folder}/{error}. Take this tar away, or copy it again") from error


def _entries(name: ShardName, stream: IO[bytes]) -> list[Entry]:
    """Where the members of each sample lie; nothing else is known of them yet."""
    where, view = tar_name(str(name)), parse_view_split(name.split)[1]
    rows: dict[str, dict[str, Any]] = {}
    previous = ("", -1)
    try:
        with tarfile.TarFile(fileobj=stream, tarinfo=OwnTarInfo) as archive:
            for info in archive:
                key, _, member = info.name.partition(".")
                base = key.partition(VIEW_MARK)[0]
                here = key, _POSITIONS.get(member, -1)
                is_plain = info.isreg() and info.offset + tarfile.BLOCKSIZE == info.offset_data
                is_next = here > previous if key == previous[0] else key not in rows
                if not (is_plain and is_next and here[1] >= 0 and _KEY.fullmatch(base) and key == view_key(base, view)):
                    raise _foreign(where, info.name)
                previous, column = here, MEMBER_COLUMNS[member]
                place = {f"{column}_offset": info.offset_data, f"{column}_length": info.size}
                rows.setdefault(key, {"key": key, "frames": 0}).update(place)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise StoreError(f"{where}: cannot be read to its end ({error})") from error
    if not rows:
        raise StoreError(f"{where}: holds no samples")
    return entries_of(name.split, str(name), index_table(list(rows.values())))


def _rows(entry: Entry, metadata: Mapping[str, Any], identity: Identity) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows of an index and of a plan. Raises StoreError where the audio list is not as stores write it."""
    base, name = split_view_key(entry.key)[0], _text(metadata, "utterance")
    mouth = source = _text(metadata, "mouth")
    if mouth and identity.is_imported and not is_reindexed(identity):
        source = embedding_path(mouth)
    indexed = {"mouth": source or None, "source_digest": _text(metadata, "source_digest") or None}
    utterance = name if escape_key(name) == base else unescape_key(base)
    try:
        audio = audio_entries(metadata)
    except ValueError as error:
        raise StoreError(f"{entry.where}: {METADATA_MEMBER}: {error}") from error
    planned = {"split": entry.split, "key": entry.key, "utterance": utterance, "mouth": mouth, "audio": audio}
    return {**vars(entry), **indexed}, planned


def _text(metadata: Mapping[str, Any], name: str) -> str:
    value = metadata.get(name)
    return value if isinstance(value, str) else ""


def _foreign(where: str, what: str) -> StoreError:
    return StoreError(f"{where}: has {what}, which is not as a store's own tars are")
