"""Where a store lies: in its own folder, or behind a URL, with a mirror in the cache of this machine."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import fsspec

from iianet.config.data_section import DataConfig
from iianet.errors import StoreError
from shardwriter.format.names import TAR_SUFFIX
from shardwriter.storage.mirror import MIRROR_FILE, open_mirror

CACHE_GB = 100.0
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NO_STORES = ("http", "https", "file", "local", "memory")
_LIKE_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*):/")


class Cache(NamedTuple):
    """Where mirrors lie, and how many bytes of tars each may hold."""

    folder: Path
    limit: int

    @classmethod
    def of(cls, options: DataConfig) -> "Cache":
        """As a config says."""
        return cls.at(options.cache_dir, options.cache_gb)

    @classmethod
    def at(cls, folder: Path | str | None = None, gigabytes: float = CACHE_GB) -> "Cache":
        """In a folder, by default that of the user."""
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return cls(Path(folder or Path(base, "iianet-shards")).expanduser(), int(gigabytes * 1e9))


def is_remote(word: str) -> bool:
    """Whether what --shards names is a store behind a URL: not a folder, nor tars by path, pattern or URL."""
    found = _URL.match(word)
    if found is None or "{" in word or word.endswith(TAR_SUFFIX):
        return False
    return found[1] not in _NO_STORES and found[1] in fsspec.available_protocols()


def store_folder(word: Path | str, cache: Cache) -> Path:
    """The folder to read a store from: its own, or a mirror of it as it is now.

    Raises:
        StoreError: What is behind a URL cannot be had.
    """
    if isinstance(word, str) and is_remote(word):
        return open_mirror(word, cache.folder, cache.limit).folder
    path = _local(word)
    if (path / MIRROR_FILE).is_file():
        raise StoreError(f"{path}: is a copy of a store behind a URL, which {MIRROR_FILE} in it names; give that")
    return path


def local_folder(word: Path | str) -> Path:
    """A store's own folder, for what works on no other. Raises StoreError where it lies behind a URL."""
    if is_remote(str(word)):
        raise StoreError(
            f"{word}: this works on a folder of this machine; copy the store there, or copy it up afterwards"
        )
    return _local(word)


def _local(word: Path | str) -> Path:
    """A folder. Raises StoreError where a URL was meant, or all would be built in a folder named `s3:`."""
    path, like = Path(word), _LIKE_URL.match(str(word))
    if like and not path.exists():
        raise StoreError(
            f"{like[1]}:/...: is no URL of a store; expected one such as s3://bucket/prefix, in small letters, or the "
            "path of a folder"
        )
    return path
