"""xxh3 digests: of files, read in pieces, and of tables, by their values."""

from collections.abc import Callable
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

CHUNK_BYTES = 4 << 20


def digest_of(stream: IO[bytes], progress: Callable[[int], object] = lambda _: None) -> tuple[str, int]:
    """Digest of the rest of a stream, xxh3_64 in 16 hexadecimal digits, and its bytes."""
    digest, size = xxhash.xxh3_64(), 0
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        progress(len(chunk))
    return str(digest.hexdigest()), size


def digest_table(table: pa.Table) -> str:
    """Digest of a table's values, xxh3_128 in 32 hexadecimal digits.

    It depends on the values alone, not on how Arrow or Parquet lay them out.
    """
    digest = xxhash.xxh3_128()
    for name in table.schema.names:
        column = table[name].combine_chunks()
        digest.update(f"{name} {len(column)}".encode())
        _update(digest, column)
    return str(digest.hexdigest())


def _update(digest: xxhash.xxh3_128, values: pa.Array) -> None:
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0) if values.num_chunks else pa.array([], values.type)
    if values.null_count:
        digest.update(np.packbits(np.asarray(pc.is_valid(values))).tobytes())
    if pa.types.is_list(values.type):
        digest.update(_int64(pc.fill_null(pc.list_value_length(values), 0)))
        _update(digest, values.flatten())
    elif pa.types.is_struct(values.type):
        for field in values.flatten():
            _update(digest, field)
    elif pa.types.is_string(values.type):
        if len(values):
            _, offsets, characters = values.buffers()
            bounds = np.frombuffer(offsets, dtype=np.int32)[values.offset : values.offset + len(values) + 1]
            digest.update(_int64(np.diff(bounds)))
            if characters is not None:
                digest.update(memoryview(characters)[int(bounds[0]) : int(bounds[-1])])
    else:
        digest.update(_int64(pc.fill_null(values, 0)))


def _int64(values: pa.Array | npt.NDArray[np.integer]) -> memoryview:
    return np.ascontiguousarray(values, dtype=np.int64).data
