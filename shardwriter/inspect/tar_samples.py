"""Samples of any tars, as WebDataset groups them, front to back. What a member holds is for others to say."""

import re
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, Any

from webdataset.tariterators import group_by_keys

from iianet.errors import StoreError
from shardwriter.format.strict_tar import StrictTarInfo
from shardwriter.storage.tar_urls import open_shard

RawSample = dict[str, Any]
"""Bytes by member name; `__key__` and `__url__` are text."""

META = re.compile(r"__[^/]*__($|/)")
"""Names that WebDataset keeps for itself, and leaves out."""
DECODED_SUFFIXES = (".npy", ".json", ".wav", ".flac")
"""Of the members that are ever looked into."""


def read_samples(urls: Iterable[str], select: Callable[[str], bool] | None = None) -> Generator[RawSample]:
    """Read tars whole, one after the other.

    Args:
        urls: As `shard_urls.expand` gives them.
        select: Says of a member's name whether it is wanted; by default all are.

    Raises:
        StoreError: One cannot be opened or read to its end.
    """
    for url in urls:
        with open_shard(url) as stream:
            try:
                yield from group_by_keys(_members(url, stream, select))
            except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
                reason = str(error.args[0] if error.args else error)
                raise StoreError(
                    f"{url}: cannot be read to its end ({reason}); copy it again, or leave it out"
                ) from error


def _members(url: str, stream: IO[bytes], select: Callable[[str], bool] | None) -> Iterator[dict[str, Any]]:
    """The files in a tar, plain or compressed, as WebDataset's grouping takes them. Its own reader takes a damaged
    header for the end."""
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as archive:
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
