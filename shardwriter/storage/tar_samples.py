"""Samples of any tars, as WebDataset groups them, front to back, and the embedding of one."""

import re
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from http.client import HTTPException
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from webdataset.tariterators import group_by_keys

from iianet.errors import StoreError
from shardwriter.format.names import AUDIO_MEMBER, EMBEDDING_MEMBER, SCALE_MEMBER
from shardwriter.format.npy import read_npy
from shardwriter.format.sample import dequantize
from shardwriter.format.tar import StrictTarInfo
from shardwriter.storage.tar_urls import open_shard

RawSample = dict[str, Any]
"""Bytes by member name; `__key__` and `__url__` are text."""

META = re.compile(r"__[^/]*__($|/)")
"""Names that WebDataset keeps for itself, and leaves out."""
DECODED_SUFFIXES = (".npy", ".json", ".wav", ".flac")
"""Of the members that are ever looked into."""
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
            except (tarfile.TarError, OSError, HTTPException, EOFError, ValueError, zlib.error) as error:
                is_partial = isinstance(error, HTTPException)  # its first argument is what has arrived
                reason = str(error if is_partial or not error.args else error.args[0])
                raise StoreError(
                    f"{url}: cannot be read to its end ({reason}); copy it again, or leave it out"
                ) from error


def _members(url: str, stream: IO[bytes], select: Callable[[str], bool] | None) -> Iterator[dict[str, Any]]:
    """The files in a tar, plain or compressed, as WebDataset's grouping takes them. Its own reader takes a damaged
    header for the end."""
    with tarfile.open(fileobj=stream, mode="r|*", bufsize=1 << 20, tarinfo=StrictTarInfo) as archive:
        for info in archive:
            if info.isreg() and META.match(info.name) is None and (select is None or select(info.name)):
                content = archive.extractfile(info)
                assert content is not None
                yield {"fname": info.name, "data": content.read(), "__url__": url}
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all


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
