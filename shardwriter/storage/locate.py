"""Which storage a word of --shards means. Name a new backend here."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from iianet.config.data_section import DataConfig
from iianet.errors import StoreError
from shardwriter.format.names import TAR_SUFFIX
from shardwriter.storage.folder import Folder
from shardwriter.storage.storage import Storage

CACHE_GB = 100.0
CONTAINERS = ("abfs", "abfss", "az", "azure", "adl")
"""Azure's container@account is not a credential."""
BUCKET_SCHEMES = ("s3", "s3a", "gs", *CONTAINERS)
_LIKE_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*):/")


class Cache(NamedTuple):
    """Where copies of buckets lie, and how many bytes of tars each store may keep there."""

    folder: Path
    limit: int

    @classmethod
    def of(cls, options: DataConfig) -> "Cache":
        """As a config says."""
        return cls.at(options.cache_dir, options.cache_gb)

    @classmethod
    def at(cls, folder: Path | str | None = None, gigabytes: float = CACHE_GB) -> "Cache":
        """In a folder, by default the user's cache folder."""
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return cls(Path(folder or Path(base, "iianet-shards")).expanduser(), int(gigabytes * 1e9))


def is_bucket(word: str) -> bool:
    """Whether what --shards names is a store in a bucket: not a folder, nor tars by path, pattern or URL."""
    is_url = any(word.startswith(f"{scheme}://") for scheme in BUCKET_SCHEMES)
    return is_url and "{" not in word and not word.endswith(TAR_SUFFIX)


def open_storage(word: Path | str, cache: Cache | None = None) -> Storage:
    """The storage that --shards names: a folder, or a bucket by its URL.

    Raises:
        StoreError: It is a URL, but not one of a store, or holds credentials.
    """
    if isinstance(word, str) and is_bucket(word):
        from shardwriter.storage.bucket import Bucket  # who uses folders alone need not load its client
        from shardwriter.storage.objects import Objects

        _check_url(word)
        return Bucket(Objects(word.rstrip("/")), *(cache or Cache.at()))
    return open_folder(word)


def _check_url(url: str) -> None:
    scheme, _, path = url.partition("://")
    if not path.strip("/") or "::" in url:
        raise StoreError(
            f"{scheme}://...: not a store URL; expected {', '.join(BUCKET_SCHEMES)}, such as s3://bucket/prefix"
        )
    if ("@" in path.partition("/")[0] and scheme not in CONTAINERS) or "?" in path:
        raise StoreError(
            f"{scheme}://...: has credentials or options in it, which would end up in logs; give them by the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL, ...)"
        )


def open_folder(
    word: Path | str, cure: str = "this works on a folder; copy the store to one, or copy it up afterwards"
) -> Folder:
    """A folder, for what works on nothing else.

    Args:
        word: What --shards names.
        cure: What to do where that is a bucket.

    Raises:
        StoreError: It is a URL; otherwise everything would be built in a folder named `s3:`.
    """
    path, like = Path(word), _LIKE_URL.match(str(word))
    if is_bucket(str(word)):
        raise StoreError(f"{word}: {cure}")
    if like and not path.exists():
        raise StoreError(
            f"{like[1]}:/...: not a store URL; expected one such as s3://bucket/prefix, in lower case, or the path of "
            "a folder"
        )
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path}: is a file; a store is a folder")
    return Folder(path)
