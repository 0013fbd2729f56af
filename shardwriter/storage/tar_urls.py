"""Tars by path, brace pattern or URL: which they are, and how they are opened. No command is ever run for one.

webdataset itself runs `pipe:` URLs in a shell, http, https, hf, gs, ais, sftp, ftps and scp URLs through programs such
as curl and gsutil, reads standard input for "-", and rewrites URLs by the variable GOPEN_REWRITE. So its own opening
is never used: local files are opened here, http and https are fetched here, and all else is refused.
"""

import http.client
import os
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

from braceexpand import braceexpand

from iianet.errors import ConfigError, StoreError
from shardwriter.format.names import TAR_SUFFIX
from shardwriter.storage.locate import is_bucket

TRAIN, VAL = "train", "val"
FETCHED = ("http:", "https:")
TIMEOUT_SECONDS = 60
"""Longest wait for a server's next bytes."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class _NoFtp(urllib.request.FTPHandler):
    """Takes the place of urllib's own, which would follow a redirection to ftp; it follows none to files."""

    def ftp_open(self, req: urllib.request.Request) -> NoReturn:
        """Refuse it."""
        raise urllib.error.URLError(f"unknown url type: {req.type}")


def is_tars(given: str) -> bool:
    """Whether a word means tars, by path, pattern or URL, instead of a store's folder."""
    if Path(given).is_dir() or is_bucket(given):
        return False
    return Path(given).is_file() or "{" in given or given.endswith(TAR_SUFFIX) or _scheme(given) is not None


def expand(given: str) -> list[str]:
    """The tars of a path, a URL, or a brace pattern of either; local ones are absolute.

    Raises:
        StoreError: One is missing, or is neither a local file nor a URL of http or https.
    """
    try:
        urls = [given] if Path(given).is_file() else list(braceexpand(given))
    except ValueError as error:
        raise StoreError(f"{given}: no pattern ({error}); expected one such as train-{{000000..000003}}.tar") from error
    return [_checked(url) for url in urls]


def split_tars(words: Sequence[str]) -> dict[str, list[str]]:
    """List the tars of train and val.

    Words with `val` and no `train` in their last part validate; where there are none, `val` takes the place of `train`.

    Raises:
        ConfigError: None are named for one of them.
        StoreError: One is missing, refused, or named twice.
    """
    val = [word for word in words if VAL in _last_part(word) and TRAIN not in _last_part(word)]
    train = [word for word in words if word not in val]
    if not train:
        raise ConfigError(f"--shards {' '.join(words)}: names shards for validation alone; name some to train from")
    tars = _expand_all(train)  # first, since it says what is refused
    try:
        return {TRAIN: tars, VAL: _expand_all(val or [validation_word(word) for word in train])}
    except StoreError as error:
        raise StoreError(f"{error}. Name the shards to validate by one more --shards, with {VAL!r} in it") from error


def validation_word(word: str) -> str:
    """The word for the validation tars that belong to some training tars.

    Raises:
        ConfigError: There is no `train` in its last part.
    """
    last = _last_part(word)
    if TRAIN not in last:
        raise ConfigError(
            f"--shards {word}: has no {TRAIN!r} in its last part, so the validation shards cannot be told from it; "
            f"rename them, or name those too, by one more --shards, with {VAL!r} in theirs"
        )
    return word.removesuffix(last) + last.replace(TRAIN, VAL, 1)


def _last_part(word: str) -> str:
    return word.rpartition("/")[2]


def _expand_all(words: Sequence[str]) -> list[str]:
    urls = [url for word in words for url in expand(word)]
    url, count = Counter(urls).most_common(1)[0]
    if count > 1:
        raise StoreError(f"{url}: is named {count} times; its samples would count as often. Name each shard once")
    return urls


def is_fetched(url: str) -> bool:
    """Whether it comes over the network."""
    return _scheme(url) in FETCHED


def open_shard(url: str) -> IO[bytes]:
    """Open one of the tars that `expand` gave. Raises StoreError where it cannot be.

    The body of a URL that breaks off ends without an error; `StrictTarInfo` finds that the tar lacks its end.
    """
    checked = _checked(url)
    if not is_fetched(checked):
        try:
            return open(checked, "rb")
        except OSError as error:
            raise StoreError(f"{checked}: cannot be opened ({error.strerror})") from error
    try:
        body: IO[bytes] = urllib.request.build_opener(_NoFtp).open(checked, timeout=TIMEOUT_SECONDS)
        return body
    except urllib.error.HTTPError as error:
        raise StoreError(f"{checked}: cannot be fetched (HTTP {error.code} {error.reason})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: of an address that is none
        raise StoreError(f"{checked}: cannot be fetched ({getattr(error, 'reason', error)})") from error


def _scheme(url: str) -> str | None:
    """`http:` and the like, or `-` for standard input; None of a path."""
    if url == "-":
        return url
    found = _SCHEME.match(url)
    return found[0].lower() if found else None


def _checked(url: str) -> str:
    scheme = _scheme(url)
    if scheme in FETCHED:
        return url
    if scheme is not None:
        raise StoreError(
            f"{url}: {scheme} is refused, since WebDataset would run a command for it or read what is no file; "
            "expected a path or a URL of http or https. Copy or mount the shards, or give their https address."
        )
    if not Path(url).is_file():
        raise StoreError(f"{url}: no such file")
    return os.path.abspath(url)
