"""A shard's index: the commit record, and where its samples lie."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from iianet.errors import StoreError
from shardwriter.format.files import atomic_file
from shardwriter.format.names import FORMAT_VERSION, INDEX_SCHEMA, INDEX_SUFFIX, merged_index_name

_METADATA = b"iianet-shards"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What an index says of its shard as a whole.

    Attributes:
        shard: Name, without suffix.
        plan: The plan it belongs to.
        tar_size: Bytes; 0 where every utterance failed, for then there is no tar.
        tar_digest: xxh3_64 of the tar, hexadecimal.
        rows: Utterances, stored and failed.
    """

    shard: str
    plan: str
    tar_size: int
    tar_digest: str
    rows: int


def write_index(store: Path, record: ShardRecord, rows: Sequence[Mapping[str, Any]]) -> None:
    """Publish a shard's index, which makes the shard count."""
    _write(store / f"{record.shard}{INDEX_SUFFIX}", pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA), [record])


def read_index(path: Path, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[ShardRecord]]:
    """Read a shard's index, or a merged one: its rows shard by shard, and the shards.

    Args:
        path: Of the index.
        columns: To read, in their order in `INDEX_SCHEMA`; all by default.

    Raises:
        StoreError: It is not an index of this format.
    """
    try:
        expected = INDEX_SCHEMA if columns is None else pa.schema([INDEX_SCHEMA.field(name) for name in columns])
        table = pq.read_table(path, columns=expected.names, page_checksum_verification=True)
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
            f"{path}: not an index of this format ({error}). Delete it and run build-shards, which writes it again."
        ) from error
    return found, records


def merge_indexes(store: Path, split: str, tables: Sequence[pa.Table], records: Sequence[ShardRecord]) -> None:
    """Publish a split's records as one file, for fast opening."""
    _write(store / merged_index_name(split), pa.concat_tables(tables), records)


def _write(path: Path, table: pa.Table, records: Sequence[ShardRecord]) -> None:
    facts = {"version": FORMAT_VERSION, "shards": [asdict(record) for record in records]}
    with atomic_file(path) as stream:
        described = table.replace_schema_metadata({_METADATA: json.dumps(facts).encode()})
        pq.write_table(described, stream, compression="zstd", write_page_checksum=True)
