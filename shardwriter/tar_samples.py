"""Samples of any tars, as WebDataset groups them, front to back. What a member holds is for others to say."""

import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

from webdataset.tariterators import group_by_keys, tar_file_expander

from configs.errors import StoreError
from shardwriter.shard_urls import open_shard

RawSample = dict[str, Any]
"""Bytes by member name; `__key__` and `__url__` are text."""

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
            files = tar_file_expander(iter([{"url": url, "stream": stream}]), select_files=select)
            try:
                yield from group_by_keys(files)
            except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
                reason = str(error.args[0] if error.args else error).partition(" @ ")[0]
                raise StoreError(f"{url}: cannot be read to its end ({reason})") from error


def is_decoded(name: str) -> bool:
    """Whether a member is among those that are ever looked into."""
    return name.lower().endswith(DECODED_SUFFIXES)


def member_names(sample: RawSample) -> list[str]:
    """Names of a sample's members, without its key."""
    return [name for name in sample if not name.startswith("__")]
