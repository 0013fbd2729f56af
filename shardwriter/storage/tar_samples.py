"""Samples of any tars, as WebDataset groups them, front to back, and the embedding of one."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from http.client import HTTPException
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from webdataset.tariterators import base_plus_ext, group_by_keys

from iianet.errors import StoreError
from shardwriter.format.names import AUDIO_MEMBER, EMBEDDING_MEMBER, SCALE_MEMBER
from shardwriter.format.npy import read_npy
from shardwriter.format.sample import dequantize
from shardwriter.format.tar import StrictTarInfo
from shardwriter.storage.tar_urls import Arriving, open_shard

RawSample = dict[str, Any]
"""Bytes by member name; `__key__` and `__url__` are text."""

META = re.compile(r"__[^/]*__($|/)")
"""Names that WebDataset keeps for itself, and leaves out."""
DECODED_SUFFIXES = (".npy", ".json", ".wav", ".flac")
"""Endings of the members that are ever looked into."""
SAMPLE_BYTES = 1 << 29
"""Most bytes of a sample, which is held in memory whole; a minute of float32 and its audio are 10 MB."""
EXPANSION = 200
"""Most bytes that a compressed tar unpacks to for each of its own; one that is no trap has 1 to 20."""
UNPACKED_AT_ONCE = 1 << 20
"""Bytes that are read at a time."""
COMPRESSED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\0\0": lzma.open,
}
"""How compressed files begin, and what reads them."""
PACKING = (zlib.error, lzma.LZMAError)
CURE = "See what the tars hold with inspect-shards; shardwriter.write_store makes a store of other layouts"


def read_samples(urls: Iterable[str], select: Callable[[str], bool] | None = None) -> Generator[RawSample]:
    """Read tars whole, one after the other.

    Args:
        urls: As `tar_urls.expand` gives them.
        select: Says of a member's name whether it is wanted; by default all are.

    Raises:
        StoreError: One cannot be opened or read to its end.
    """
    for url in urls:
        with open_shard(url) as stream:
            try:
                yield from group_by_keys(_members(url, stream, select))
            except (tarfile.TarError, OSError, HTTPException, EOFError, ValueError, MemoryError, *PACKING) as error:
                is_partial = isinstance(error, HTTPException)  # its first argument is what has arrived
                reason = str(error if is_partial or not error.args else error.args[0])
                raise StoreError(
                    f"{url}: cannot be read to its end ({reason}); copy it again, or leave it out"
                ) from error


def _members(url: str, stream: io.BufferedReader, select: Callable[[str], bool] | None) -> Iterator[dict[str, Any]]:
    """The files in a tar, plain or compressed, as WebDataset's grouping takes them. Its own reader takes a damaged
    header for the end."""
    size, before = 0, ""
    unpacked = cast(IO[bytes], _Unpacked(stream))
    with tarfile.open(fileobj=unpacked, mode="r|", bufsize=UNPACKED_AT_ONCE, tarinfo=StrictTarInfo) as archive:
        for info in archive:
            if info.isreg() and META.match(info.name) is None and (select is None or select(info.name)):
                key = base_plus_ext(info.name)[0]
                size, before = info.size + (size if key == before else 0), key
                if size > SAMPLE_BYTES:
                    raise tarfile.ReadError(f"{key!r} has {size:,} bytes; expected at most {SAMPLE_BYTES:,} a sample")
                content = archive.extractfile(info)
                assert content is not None
                yield {"fname": info.name, "data": content.read(), "__url__": url}
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all


class _Unpacked:
    """Reads a tar that may be compressed, and no more of it than one can hold that is no trap."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._packed = cast(Arriving, stream.raw)
        head = stream.peek(max(map(len, COMPRESSED)))
        opened = [read(stream) for magic, read in COMPRESSED.items() if head.startswith(magic)]
        self._stream, self._is_compressed = (opened or [stream])[0], bool(opened)
        self._given = 0

    def read(self, size: int) -> bytes:
        """Read so many bytes, or what is left."""
        content: bytes = self._stream.read(size)
        self._given += len(content)
        if self._is_compressed and self._given > EXPANSION * self._packed.taken + SAMPLE_BYTES // 8:
            found = f"unpacks to {self._given:,} bytes and more out of {self._packed.taken:,}"
            raise tarfile.ReadError(f"it {found}; expected at most {EXPANSION} times as many")
        return content


def is_decoded(name: str) -> bool:
    """Whether a member is among those that are ever looked into."""
    return name.lower().endswith(DECODED_SUFFIXES)


def member_names(sample: RawSample) -> list[str]:
    """Names of a sample's members, without its key."""
    return [name for name in sample if not name.startswith("__")]


def sample_name(sample: RawSample) -> str:
    """Tar and key of a sample, as messages about it begin."""
    return f"{sample['__url__']}: {sample['__key__']}"


def read_embedding(sample: RawSample, dim: int) -> npt.NDArray[Any]:
    """Read a sample's embedding, `(dim, frames)`, float16 or float32; int8 with its scale becomes float16.

    It is embedding.npy, or the only npy there is.

    Raises:
        StoreError: There is none, or one of another shape or dtype, or with values that are not finite.
    """
    where, members = sample_name(sample), member_names(sample)
    names = [name for name in members if name.endswith("npy") and name not in (SCALE_MEMBER, AUDIO_MEMBER)]
    if EMBEDDING_MEMBER not in names and len(names) != 1:
        raise StoreError(f"{where}: has {', '.join(members) or 'nothing'}; expected one npy. {CURE}")
    name = EMBEDDING_MEMBER if EMBEDDING_MEMBER in names else names[0]
    found = _read_array(sample, name, ("float16", "float32", "int8"))
    if found.shape[:-1] != (dim,) or not found.size:
        raise StoreError(f"{where}: {name} is {found.shape}; expected ({dim}, frames). {CURE}")
    if found.dtype == np.int8:
        scale = _read_array(sample, SCALE_MEMBER, ("float32",))
        if scale.shape != (dim,):
            raise StoreError(f"{where}: {SCALE_MEMBER} is {scale.shape}; expected ({dim},). {CURE}")
        found = dequantize(found, scale, out=np.empty(found.shape, np.float16))
    if not np.isfinite(found).all():
        raise StoreError(f"{where}: {name} has values that are not finite; they would spoil the weights. {CURE}")
    return found


def _read_array(sample: RawSample, name: str, dtypes: Sequence[str]) -> npt.NDArray[Any]:
    """Read an npy member, in the byte order of this machine."""
    if name not in sample:
        raise StoreError(f"{sample_name(sample)}: has no {name}, which its embedding of int8 needs. {CURE}")
    found: npt.NDArray[Any] = read_npy(sample[name], f"{sample_name(sample)}: {name}")
    dtype = found.dtype.newbyteorder("=")
    if dtype.name not in dtypes:
        raise StoreError(f"{sample_name(sample)}: {name} is of {dtype}; expected {' or '.join(dtypes)}. {CURE}")
    return found.astype(dtype, copy=False)
