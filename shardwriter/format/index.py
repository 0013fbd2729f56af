"""A shard's index: the commit record, and where its samples lie."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iianet.errors import StoreError
from iianet.wording import show
from shardwriter.format.document import take, take_count
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    METADATA_MEMBER,
    SCALE_MEMBER,
    STORE_FILE,
    parse_shard,
    tar_name,
)
from shardwriter.format.npy import NPY_HEADER_BYTES
from shardwriter.format.record import Identity
from shardwriter.format.table import decode_table, encode_table, reading, refuse_other_keys
from shardwriter.format.tar import BLOCK_BYTES

Rows = npt.NDArray[np.int64]

ROWS_AT_A_TIME: Final = 65_536
"""Rows that are checked at a time."""

MEMBER_COLUMNS: Final = {
    EMBEDDING_MEMBER: "embedding",
    SCALE_MEMBER: "scale",
    METADATA_MEMBER: "metadata",
    AUDIO_MEMBER: "audio",
}
"""How the index calls the offset and the length of each member, in the order of the tar."""

INDEX_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("mouth", pa.string()),  # source npz, relative to data_root; null where there was none
        pa.field("frames", pa.int32(), nullable=False),  # 0 where it failed
        pa.field("embedding_offset", pa.int64()),  # bytes from the start of the tar; null where it failed
        pa.field("embedding_length", pa.int64()),
        pa.field("scale_offset", pa.int64()),  # null except in int8 stores
        pa.field("scale_length", pa.int64()),
        pa.field("metadata_offset", pa.int64()),
        pa.field("metadata_length", pa.int64()),
        pa.field("audio_offset", pa.int64()),  # null except in stores with their audio
        pa.field("audio_length", pa.int64()),
        pa.field("source_size", pa.int64()),  # bytes of the npz when it was encoded; null where it was missing
        pa.field("source_mtime_ns", pa.int64()),
        pa.field("source_digest", pa.string()),  # xxh3_64 of the npz
        pa.field("error", pa.string()),  # why it failed; null where it is stored
    ]
)


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What an index says of its shard as a whole.

    Attributes:
        shard: Name, without suffix; it names the plan, too.
        tar_size: Bytes; 0 where every utterance failed: then there is no tar.
        tar_digest: xxh3_64 of the tar, hexadecimal.
        rows: Utterances, stored and failed.
    """

    shard: str
    tar_size: int
    tar_digest: str
    rows: int


class MemberPlace(NamedTuple):
    """Where a member's content lies in a tar, bytes."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of a shard's index; from `key` on, the columns of `INDEX_SCHEMA`."""

    split: str
    shard: str
    key: str
    mouth: str | None
    frames: int
    embedding_offset: int | None
    embedding_length: int | None
    scale_offset: int | None
    scale_length: int | None
    metadata_offset: int | None
    metadata_length: int | None
    audio_offset: int | None
    audio_length: int | None
    source_size: int | None
    source_mtime_ns: int | None
    source_digest: str | None
    error: str | None

    @property
    def where(self) -> str:
        """How a message about this sample starts."""
        return f"{tar_name(self.shard)}: {self.key}"

    @property
    def members(self) -> dict[str, MemberPlace]:
        """Where the sample's members lie, those that the index lists, in the order of the tar."""
        places = {
            member: (getattr(self, f"{column}_offset"), getattr(self, f"{column}_length"))
            for member, column in MEMBER_COLUMNS.items()
        }
        return {
            member: MemberPlace(offset, size)
            for member, (offset, size) in places.items()
            if offset is not None and size is not None
        }


def entries_of(split: str, shard: str, rows: pa.Table) -> list[Entry]:
    """Rows of a shard's index, typed."""
    columns: list[dict[str, Any]] = rows.to_pylist()
    return [Entry(split=split, shard=shard, **row) for row in columns]


def index_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of `INDEX_SCHEMA`."""
    return pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA)


def encode_index(table: pa.Table, records: Iterable[ShardRecord]) -> bytes:
    """Content of an index of one shard, or of several."""
    return encode_table(table, {"shards": list(map(asdict, records))})


def decode_index(
    stream: IO[bytes],
    where: str,
    columns: Sequence[str] | None = None,
    identity: Identity | None = None,
    shards: Sequence[str] = (),
) -> tuple[pa.Table, list[ShardRecord]]:
    """Read a shard's index, or a merged one: its rows shard by shard, and the shards.

    Every place that is read lies inside its tar, behind the places before it.

    Args:
        stream: Its content.
        where: How a message about it starts.
        columns: To read, in their order in `INDEX_SCHEMA`; all by default.
        identity: Of the store; None where it is not known.
        shards: Shards of one split of the store. Where it lists just them, their samples have the members that the
            identity says, and arrays of its size.

    Raises:
        StoreError: It is not an index of this format, is damaged, or cannot be read.
    """
    expected = INDEX_SCHEMA if columns is None else pa.schema([INDEX_SCHEMA.field(name) for name in columns])
    with reading(where, "an index", f"Put back what was there, or delete it and {_cure(identity)}"):
        table, facts = decode_table(stream, expected)
        records = [_parse_record(record) for record in take(facts, "shards", list)]
        if len({record.shard for record in records}) != len(records):
            raise ValueError("it lists a shard twice")
        if sum(record.rows for record in records) != len(table):
            raise ValueError(f"{len(table)} rows; expected {sum(record.rows for record in records)}")
        layout = None
        if identity and shards and [record.shard for record in records] == list(shards):
            layout = Layout(identity, identity.members(shards[0].partition("-")[0]))
        _check_rows(table, records, layout)
    return table, records


def decode_shard_index(
    stream: IO[bytes],
    where: str,
    shard: str,
    columns: Sequence[str] | None = None,
    identity: Identity | None = None,
) -> tuple[pa.Table, ShardRecord]:
    """Read the index of one shard. Raises as `decode_index`, and where it is the index of another."""
    table, records = decode_index(stream, where, columns, identity, [shard])
    if [record.shard for record in records] != [shard]:
        found = ", ".join(record.shard for record in records[:3]) or "nothing"
        raise StoreError(
            f"{where}: is the index of {found}; expected {shard}. It was copied or renamed: put back the right one, or "
            f"delete it and {_cure(identity)}"
        )
    return table, records[0]


def _cure(identity: Identity | None) -> str:
    return f"{identity.writes_again if identity else 'run build-shards'}, which writes the shard again"


def _parse_record(found: Any) -> ShardRecord:
    """What is said of a shard, checked. Raises ValueError."""
    if not isinstance(found, dict):
        raise ValueError(f"a shard is {show(found)}; expected an object")
    shard, size, digest = take(found, "shard", str), take_count(found, "tar_size"), take(found, "tar_digest", str)
    if parse_shard(shard) is None:
        raise ValueError(f"{show(shard)} is not the name of a shard")
    if not re.fullmatch(r"[0-9a-f]{16}" if size else "", digest):
        raise ValueError(f"{shard}: the digest {show(digest)} of a tar of {size:,} bytes")
    return ShardRecord(shard=shard, tar_size=size, tar_digest=digest, rows=take_count(found, "rows"))


class Layout(NamedTuple):
    """What all samples of a split are: embeddings of a store, and their members."""

    identity: Identity
    members: tuple[str, ...]

    def __str__(self) -> str:
        array = f"({self.identity.dim}, frames) {self.identity.dtype}"
        return f"{', '.join(self.members)}, one behind the other, the first of {array}, as {STORE_FILE} says"


def _check_rows(table: pa.Table, records: Sequence[ShardRecord], layout: Layout | None) -> None:
    """Raise ValueError where a row cannot be true of its tar. Some rows at a time: that takes little memory."""
    if "key" in table.schema.names:
        refuse_other_keys(table["key"])
    if "embedding_offset" not in table.schema.names:
        return
    members = [name for name, column in MEMBER_COLUMNS.items() if f"{column}_offset" in table.schema.names]
    rows = np.array([record.rows for record in records], dtype=np.int64)
    sizes = np.array([record.tar_size for record in records], dtype=np.int64)
    ends = np.cumsum(rows)
    for start in range(0, len(table), ROWS_AT_A_TIME):
        part = table.slice(max(start - 1, 0), ROWS_AT_A_TIME + 1)  # the first follows one that was checked
        shards = np.searchsorted(ends, np.arange(max(start - 1, 0), max(start - 1, 0) + len(part)), side="right")
        wrong = _wrong_places(part, members, shards, sizes[shards], layout)
        if len(wrong):
            row, record = part.slice(int(wrong[0]), 1), records[int(shards[wrong[0]])]
            said = {name: value for name, value in row.to_pylist()[0].items() if value is not None}
            raise ValueError(
                f"{record.shard}, whose tar has {record.tar_size:,} bytes, is said to have {said}; expected "
                f"{layout or 'its members, one behind the other'}"
            )


def _wrong_places(part: pa.Table, members: Sequence[str], shards: Rows, sizes: Rows, layout: Layout | None) -> Rows:
    """Rows with a place outside of their tar, or before the end of the place before; or stored without a place; or, as
    far as the layout is known, with other members, or an embedding of another size."""
    columns = [MEMBER_COLUMNS[member] for member in members]
    starts = np.stack([_filled(part, f"{column}_offset", -1) for column in columns], axis=1)
    lengths = np.stack([_filled(part, f"{column}_length", 1) for column in columns], axis=1)
    present = np.stack([np.asarray(part[f"{column}_offset"].is_valid()) for column in columns], axis=1)
    inside = (
        (starts >= BLOCK_BYTES) & (starts % BLOCK_BYTES == 0) & (lengths > 0) & (lengths <= sizes[:, None] - starts)
    )
    row, _ = np.nonzero(present)
    first, end = starts[present], (starts + lengths)[present]
    overlaps = (first[1:] < end[:-1] + BLOCK_BYTES) & (shards[row[1:]] == shards[row[:-1]])
    wrong = (present & ~inside).any(axis=1)
    wrong[row[1:][overlaps]] = True
    if "error" in part.schema.names:
        wrong |= np.asarray(part["error"].is_null()) != present[:, 0]
    if "frames" in part.schema.names:
        wrong |= (np.asarray(part["frames"]) > 0) != present[:, 0]
    if layout:
        wrong |= (present != (present[:, :1] & [member in layout.members for member in members])).any(axis=1)
        if {"embedding_length", "frames"} <= set(part.schema.names):
            row_bytes = layout.identity.dim * np.dtype(layout.identity.dtype).itemsize
            wrong |= present[:, 0] & (lengths[:, 0] != NPY_HEADER_BYTES + row_bytes * _filled(part, "frames", 0))
    return np.flatnonzero(wrong)


def _filled(part: pa.Table, name: str, value: int) -> Rows:
    """A column of integers, with a value where there is none; where it was not read, that value."""
    if name not in part.schema.names:
        return np.full(len(part), value, dtype=np.int64)
    return np.asarray(part[name].fill_null(value), dtype=np.int64)
