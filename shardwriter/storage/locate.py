"""Which storage a word of --shards means. Name a new backend here."""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from iianet.config.data_section import DataConfig
from iianet.errors import ConfigError, StoreError
from iianet.paths import expand_path, scheme
from shardwriter.format.names import TAR_SUFFIX
from shardwriter.storage.folder import Folder
from shardwriter.storage.storage import Storage

CACHE_GB = 100.0
CONTAINERS = ("abfs", "abfss", "az", "azure", "adl")
"""Azure's container@account is not a credential."""
BUCKET_SCHEMES = ("s3", "s3a", "gs", *CONTAINERS)
_NO_FOLDERS = {
    "(file:/).*": "...: not a store URL; give the path itself, without file://",
    "(memory:/).*": "...: not a store URL, for what lies in memory ends with its process",
    "(https?:/).*": "...: not a store URL, for a web server holds no stores, but tars to train from",
    "([a-z][a-z0-9+.:-]*:/).*": "...: not a store URL, whose schemes are in lower case",
    "(pipe:).*": " is a command, and none is ever run",
    "(-)": " is standard input",
    r"(.*[*?\[{].*|.*\.tar)": ": names tars, or a pattern of them",
}
"""What a word means, by its pattern, that is not the path of a folder; what may hold a secret is not shown."""

_URL = r"(?:^[a-z][a-z0-9+.-]*:|[a-z][a-z0-9+.-]*://)/*"
_SECRET = re.compile(rf"{_URL}[^/?#]*(@|:(?!\d+([/?#]|$)).*@)", re.DOTALL | re.IGNORECASE)
"""A user or a password in a URL, or in one in a pattern; a password may hold a / that nobody has escaped."""
_HIDDEN = re.compile(rf"(pipe:).*|({_URL}).*(?=@)", re.DOTALL | re.IGNORECASE)


class Cache(NamedTuple):
    """Where copies of buckets lie, as a user writes it, and how many bytes of tars each store may keep there."""

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
        return cls(Path(folder or Path(base, "iianet-shards")), int(gigabytes * 1e9))


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

        kind, _, path = word.partition("://")
        if not path.strip("/") or "::" in word:
            raise StoreError(
                f"{kind}://...: not a store URL; expected {', '.join(BUCKET_SCHEMES)}, such as s3://bucket/prefix"
            )
        refuse_secrets(word)
        cache = cache or Cache.at()
        try:
            folder = expand_path(cache.folder)  # not before: not every user has a home
        except ConfigError as error:
            raise StoreError(f"{error}; name a cache folder for copies (datamodule.data_config.cache_dir)") from error
        return Bucket(Objects(word.rstrip("/")), folder, cache.limit)
    return open_folder(word)


def shown(word: str) -> str:
    """A word of --shards as messages show it: of a URL nothing before its last @, of a command nothing."""
    return _HIDDEN.sub(r"\1\2...", word)


def refuse_secrets(word: str) -> None:
    """Raise StoreError where a word is a URL with a user or a password in it, or a bucket's with options."""
    kind = scheme(word)
    has_options = kind in BUCKET_SCHEMES and "?" in word
    if (has_options or (kind not in CONTAINERS and _SECRET.search(word))) and not os.path.exists(word):
        raise StoreError(
            f"{shown(word.partition('?')[0])}: has credentials or options in it, a user or a password, which would end "
            "up in logs; expected an address that needs none. Give those of a bucket by the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL, ...); download tars of a web "
            "server, or have them served without"
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
    given = str(word)
    if is_bucket(given):
        raise StoreError(f"{word}: {cure}")
    path = expand_path(word)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        _refuse_what_is_no_folder(str(path))
        return Folder(path)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}: cannot be a folder of a store ({getattr(error, 'strerror', None) or error})"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise StoreError(f"{path}: is a file; a store is a folder")
    return Folder(path)


def _refuse_what_is_no_folder(word: str) -> None:
    """Raise StoreError where a word is no path that a user would give a new folder, which would be made of it."""
    for pattern, what in _NO_FOLDERS.items():
        if match := re.fullmatch(pattern, word, re.DOTALL | re.IGNORECASE):
            raise StoreError(
                f"{match[1]}{what}; expected the path of a store's folder, or a URL such as s3://bucket/prefix. If a "
                "folder is to have just that name, make it first"
            )
