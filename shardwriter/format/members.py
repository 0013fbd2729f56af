"""Members of one sample, read back from its tar."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from iianet.errors import StoreError
from shardwriter.format.index import read_index
from shardwriter.format.names import EMBEDDING_MEMBER, INDEX_SUFFIX, METADATA_MEMBER, SCALE_MEMBER, TAR_SUFFIX
from shardwriter.format.npy import read_npy
from shardwriter.format.quantize import dequantize
from shardwriter.inspect.contents import Entry
from shardwriter.storage.mirror import mirror_at, open_tar_file
from shardwriter.store.recorded import parse_metadata


@contextmanager
def open_tar(store: Path, shard: str) -> Iterator[IO[bytes]]:
    """Open a shard for reading. Raises StoreError where it cannot be."""
    path = store / f"{shard}{TAR_SUFFIX}"
    try:
        if mirror_at(store):
            record = read_index(store / f"{shard}{INDEX_SUFFIX}", ["key"])[1][0]
            stream: IO[bytes] = os.fdopen(open_tar_file(path, record.tar_size, record.tar_digest)[0], "rb")
        else:
            stream = path.open("rb")
    except OSError as error:
        raise StoreError(f"{path.name}: cannot be opened ({error.strerror})") from error
    with stream:
        yield stream


def read_array(tar: IO[bytes], entry: Entry, member: str) -> npt.NDArray[Any]:
    """Read an npy member as it is stored, if the tar holds one there.

    Raises:
        StoreError: What is there is no npy, or is cut.
    """
    return read_npy(read_member(tar, entry, member), f"{entry.where}: {member}")


def read_values(tar: IO[bytes], entry: Entry) -> npt.NDArray[np.float32]:
    """Read an embedding as what it stands for, `(dim, frames)` float32.

    Raises:
        StoreError: It cannot be read, or is of whole numbers without a fitting scale.
    """
    scale = read_array(tar, entry, SCALE_MEMBER) if SCALE_MEMBER in entry.members else None
    return _values(entry, read_array(tar, entry, EMBEDDING_MEMBER), scale)


def _values(entry: Entry, embedding: npt.NDArray[Any], scale: npt.NDArray[Any] | None) -> npt.NDArray[np.float32]:
    if embedding.dtype != np.int8:
        return embedding.astype(np.float32)
    if scale is None or scale.dtype != np.float32 or scale.shape != embedding.shape[:1]:
        found = "is missing" if scale is None else f"is {scale.shape} {scale.dtype}"
        raise StoreError(f"{entry.where}: {SCALE_MEMBER}: {found}; expected {embedding.shape[:1]} float32")
    return dequantize(embedding, scale)


def read_metadata(tar: IO[bytes], entry: Entry) -> dict[str, Any]:
    """Read a sample's json member. Raises StoreError where it is no JSON object."""
    content = read_member(tar, entry, METADATA_MEMBER)
    try:
        return parse_metadata(content)
    except ValueError as error:
        raise StoreError(f"{entry.where}: {METADATA_MEMBER}: not JSON ({error})") from error


def read_member(tar: IO[bytes], entry: Entry, member: str) -> bytes:
    """Content of a member as it is. Raises StoreError where its index does not tell of it, or the tar ends before."""
    if member not in entry.members:
        raise StoreError(f"{entry.where}: {member}: its index does not tell where it lies; the store is damaged")
    offset, size = entry.members[member]
    tar.seek(offset)
    content = tar.read(size)
    if len(content) != size:
        raise StoreError(f"{entry.where}: the tar ends before byte {offset + size:,}, where the index says it ends")
    return content
