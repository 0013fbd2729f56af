"""Parquet files: every page is checked, and each column is one piece of memory.

pq.read_table gives a column in eight pieces, so that whoever needs it whole copies it.

Plans and indexes carry facts beside their table: JSON in the schema's metadata. Before the footer, where no reader of
Parquet looks, lie digests of it and of each column, since Arrow ends the process where some bytes of a footer or of a
page's header are not what was written. There are no dictionaries, which let a few bytes stand for any number of values.

    PAR1, columns, xxh3_128 of each column of each row group, xxh3_128 of all that follows, footer, its length, PAR1
"""

import errno
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from iianet.errors import StoreError, UnreadableError
from shardwriter.format.digest import digest_table
from shardwriter.format.document import MOST_BYTES, parse_object
from shardwriter.format.names import FORMAT_VERSION

MOST_GROWTH: Final = 256
"""How many times larger than its file a table may be; one of a million short keys, all alike, is 70 times larger."""
SMALL_BYTES: Final = 64 << 20
"""A table of so many bytes is read, however small its file is."""
_MOST_PARTS = 10_000
"""Row groups and the like."""
_OF_DAMAGE = (None, errno.EINVAL)
"""Numbers of an OSError that is Arrow's own, or of a seek to before the start of a file that was cut."""
_METADATA = b"iianet-shards"
_DIGEST_BYTES = 16
_TAIL_BYTES = 8
"""Length of the footer, and PAR1."""
_KEYS = r"^[A-Za-z0-9_%-]{1,80}(@[1-9][0-9]{0,4})?$"


def column_digests(table: pa.Table) -> dict[str, str]:
    """Digest of the values of each column of a table, by name."""
    return {name: digest_table(table.select([name])) for name in table.schema.names}


def encode_table(table: pa.Table, facts: Mapping[str, Any]) -> bytes:
    """Content of a file of a table, and of facts about it."""
    described = json.dumps({"version": FORMAT_VERSION, **facts}).encode()
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({_METADATA: described}),
        buffer,
        compression="zstd",
        use_dictionary=False,
        write_page_checksum=True,
    )
    return add_digests(buffer.getvalue())


def add_digests(content: bytes) -> bytes:
    """A Parquet file with digests of its columns and its footer."""
    footer = len(content) - _TAIL_BYTES - int.from_bytes(content[-_TAIL_BYTES:][:4], "little")
    chunks = _chunks(pq.read_metadata(io.BytesIO(content)))
    digests = b"".join(_digest(content[chunk.data_page_offset :][: chunk.total_compressed_size]) for chunk in chunks)
    return content[:footer] + digests + _digest(content[footer:]) + content[footer:]


def decode_facts(stream: IO[bytes]) -> dict[str, Any]:
    """Facts about a table, and `num_rows`, the rows that it has; its columns are not read.

    Raises:
        Exception: It is damaged, or something else; inside `reading`, a StoreError that says so.
    """
    with _opened(stream) as (_, facts, _):
        return facts


def decode_table(stream: IO[bytes], schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]]:
    """Read the columns of a schema, and the facts as `decode_facts` does. Raises as it does."""
    with _opened(stream) as (file, facts, footer):
        _check_columns(stream, footer, file.metadata, set(schema.names))
        table = file.read(schema.names).replace_schema_metadata(None)
    table.validate(full=True)
    if table.schema != schema:
        raise ValueError(f"columns {', '.join(table.schema.names)}; expected {', '.join(schema.names)}")
    return table, facts


def _digest(content: bytes) -> bytes:
    return xxhash.xxh3_128_digest(content)


def _check_footer(stream: IO[bytes]) -> int:
    """Where the digest of the footer starts. Raises ValueError where the footer is not what was written."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - _TAIL_BYTES, 0))
    tail = stream.read(_TAIL_BYTES)
    start = size - _TAIL_BYTES - int.from_bytes(tail[:4], "little") - _DIGEST_BYTES
    if tail[4:] != b"PAR1" or start < 0 or size - start > 4 * MOST_BYTES:
        raise ValueError(f"{size:,} bytes that do not end as a Parquet file of ours does")
    stream.seek(start)
    expected, footer = stream.read(_DIGEST_BYTES), stream.read()
    if _digest(footer) != expected:
        raise ValueError("its footer is not what its digest says")
    return start


def _check_columns(stream: IO[bytes], end: int, metadata: pq.FileMetaData, names: set[str]) -> None:
    """Raise ValueError where a column is not what was written; `end` is where the digests end."""
    chunks = _chunks(metadata)
    stream.seek(max(end - len(chunks) * _DIGEST_BYTES, 0))
    for chunk, expected in [(chunk, stream.read(_DIGEST_BYTES)) for chunk in chunks]:
        if _column_of(chunk) in names:
            if not 0 <= chunk.data_page_offset <= chunk.data_page_offset + chunk.total_compressed_size <= end:
                raise ValueError(f"the column {chunk.path_in_schema} lies outside of the file")
            stream.seek(chunk.data_page_offset)
            if _digest(stream.read(chunk.total_compressed_size)) != expected:
                raise ValueError(f"the column {chunk.path_in_schema} is not what its digest says")


def _chunks(metadata: pq.FileMetaData) -> list[pq.ColumnChunkMetaData]:
    """The columns of a file, of one row group after the other."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return [group.column(number) for group in groups for number in range(group.num_columns)]


def _column_of(chunk: pq.ColumnChunkMetaData) -> str:
    """Name of the column that holds a column, which may be nested."""
    return str(chunk.path_in_schema).partition(".")[0]


def refuse_other_keys(keys: pa.ChunkedArray) -> None:
    """Raise ValueError where a key is not one that a name can be escaped to: it would name other files."""
    is_key = pc.match_substring_regex(keys, _KEYS)
    if not pc.all(is_key, skip_nulls=False, min_count=0).as_py():
        raise ValueError(f"the key {keys[pc.index(is_key, False).as_py()].as_py()!r}")


class LostError(StoreError):
    """A file of a store is missing or damaged; not one that cannot be read just now."""


@contextmanager
def reading(where: str, what: str, cure: str) -> Iterator[None]:
    """Turn what goes wrong with a file into a StoreError: damage, with its cure, or no access, which is none.

    Args:
        where: What users call the file.
        what: What it should be, as 'a plan'.
        cure: What to do where it is damaged.

    Raises:
        UnreadableError: It cannot be read.
        LostError: It is damaged. FileNotFoundError is left to the caller, who knows why it may be gone.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_DAMAGE:
            raise UnreadableError(where, error) from error
        raise LostError(f"{where}: not {what} of this format ({error}). {cure}") from error


@contextmanager
def _opened(stream: IO[bytes]) -> Iterator[tuple[pq.ParquetFile, dict[str, Any], int]]:
    """A file, its facts, and where its columns and their digests end."""
    footer = _check_footer(stream)
    with pq.ParquetFile(
        stream,
        page_checksum_verification=True,
        pre_buffer=False,
        thrift_string_size_limit=4 * MOST_BYTES,
        thrift_container_size_limit=_MOST_PARTS,
    ) as file:
        facts = parse_object((file.schema_arrow.metadata or {})[_METADATA])
        if facts.get("version") != FORMAT_VERSION:
            raise ValueError(f"version {facts.get('version')} of the format; expected {FORMAT_VERSION}")
        _refuse_bomb(file.metadata, footer)
        yield file, {**facts, "num_rows": file.metadata.num_rows}, footer


_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}


def _refuse_bomb(metadata: pq.FileMetaData, size: int) -> None:
    """Raise ValueError where a table would take far more memory than its file takes room, or says to have no values."""
    needed = 0
    for chunk in _chunks(metadata):
        if strange := set(chunk.encodings) - _ENCODINGS:  # those may unpack to any size
            raise ValueError(f"the column {chunk.path_in_schema} is encoded as {min(strange)}; expected plain values")
        needed += max(chunk.total_uncompressed_size, 0) + 8 * max(chunk.num_values, 0)
    if needed > max(SMALL_BYTES, MOST_GROWTH * size):
        raise ValueError(
            f"a table of {needed:,} bytes in a file of {size:,}; expected at most {MOST_GROWTH} times that"
        )
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if metadata.num_rows != sum(rows) or 8 * metadata.num_rows * metadata.num_columns > needed:
        raise ValueError(f"{metadata.num_rows:,} rows in columns of fewer values")
