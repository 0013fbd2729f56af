"""A shard's index: the commit record, and where its samples lie."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from iianet.errors import StoreError
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    FORMAT_VERSION,
    METADATA_MEMBER,
    SCALE_MEMBER,
    tar_name,
)
from shardwriter.format.table import read_table

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
_METADATA = b"iianet-shards"


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
    facts = {"version": FORMAT_VERSION, "shards": [asdict(record) for record in records]}
    described = table.replace_schema_metadata({_METADATA: json.dumps(facts).encode()})
    buffer = io.BytesIO()
    pq.write_table(described, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def decode_index(
    stream: IO[bytes], where: str, columns: Sequence[str] | None = None
) -> tuple[pa.Table, list[ShardRecord]]:
    """Read a shard's index, or a merged one: its rows shard by shard, and the shards.

    Args:
        stream: Its content.
        where: How a message about it starts.
        columns: To read, in their order in `INDEX_SCHEMA`; all by default.

    Raises:
        StoreError: It is not an index of this format.
    """
    try:
        expected = INDEX_SCHEMA if columns is None else pa.schema([INDEX_SCHEMA.field(name) for name in columns])
        table = read_table(stream, expected.names)
        facts = json.loads(table.schema.metadata[_METADATA])
        records = [ShardRecord(**record) for record in facts["shards"]]
        found = table.replace_schema_metadata(None)
        found.validate(full=True)
        if facts["version"] != FORMAT_VERSION or found.schema != expected:
            raise ValueError(f"version {facts['version']}, columns {found.schema.names}")
        if sum(record.rows for record in records) != len(found):
            raise ValueError(f"{len(found)} rows")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{where}: not an index of this format ({error}). Delete it and run build-shards, which writes it again."
        ) from error
    return found, records
