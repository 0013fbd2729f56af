"""Tars by path, brace pattern or URL: which they are, and how they are opened. No command is ever run for one.

webdataset itself runs `pipe:` URLs in a shell, http, https, hf, gs, ais, sftp, ftps and scp URLs through programs such
as curl and gsutil, reads standard input for "-", and rewrites URLs by the variable GOPEN_REWRITE. So its own opening
is never used: local files are opened here, http and https are fetched here, and all else is refused.
"""

import http.client
import io
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from braceexpand import braceexpand

from iianet.errors import ConfigError, StoreError
from iianet.paths import expand_word, scheme
from shardwriter.format.names import TAR_SUFFIX
from shardwriter.storage.locate import is_bucket, refuse_secrets, shown

TRAIN, VAL, TEST = "train", "val", "test"
PURPOSES = {VAL: "validation", TEST: "the test split (training.test_every_n_epochs)"}
"""Splits besides train, in words."""
FETCHED = ("http", "https")
TIMEOUT_SECONDS = 60
"""Longest wait for a server's next bytes."""
SLOWEST = 1000
"""Bytes that a server sends in each second at least, on average over so long a wait."""
MOST_TARS = 100_000
"""Most tars that one pattern means."""
_NUMBERS = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_LETTERS = re.compile(r"\{([A-Za-z])\.\.([A-Za-z])")


class _NoFtp(urllib.request.FTPHandler):
    """Takes the place of urllib's own, which would follow a redirection to ftp; it follows none to files."""

    def ftp_open(self, req: urllib.request.Request) -> NoReturn:
        """Refuse it."""
        raise urllib.error.URLError(f"unknown url type: {req.type}")


class Arriving(io.RawIOBase):
    """Counts the bytes of a tar, or of all that a server sends, as they come; next to nothing is an OSError.

    Attributes:
        taken: Bytes that have come.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.taken = self._counted = 0
        self._waited = 0.0

    def readable(self) -> bool:
        """Whether it can be read, which BufferedReader asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come, at most as much as fits."""
        asked = time.monotonic()
        content = self.source.read1(len(buffer))
        self._waited += time.monotonic() - asked
        self.taken += len(content)
        if self._waited > TIMEOUT_SECONDS:
            if content and self.taken - self._counted < SLOWEST * TIMEOUT_SECONDS:
                raise TimeoutError(f"it sends fewer than {SLOWEST:,} bytes a second")
            self._waited, self._counted = 0.0, self.taken
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the source too."""
        self.source.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """Bounds the wait for whatever a server sends: headers and the lengths of chunks, too, which are no bytes of a tar.

    Each byte that comes, if only one, comes by the `Arriving` below it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fp: Any = io.BufferedReader(Arriving(self.fp))


class _Bounded(urllib.request.AbstractHTTPHandler):
    """Makes connections whose responses are bounded."""

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        """See `AbstractHTTPHandler`."""
        bounded: Any = type("Bounded", (http_class,), {"response_class": _Response})
        return super().do_open(bounded, req, **options)


class _Http(_Bounded, urllib.request.HTTPHandler):
    pass


class _Https(_Bounded, urllib.request.HTTPSHandler):
    pass


def is_tars(given: str) -> bool:
    """Whether a word means tars, by path, pattern or URL, instead of a store's folder."""
    refuse_secrets(given)
    word = expand_word(given)
    if os.path.isdir(word) or is_bucket(word):
        return False
    return os.path.isfile(word) or "{" in word or word.endswith(TAR_SUFFIX) or word == "-" or scheme(word) is not None


def expand(given: str) -> list[str]:
    """The tars of a path, a URL, or a brace pattern of either; local ones are absolute.

    Raises:
        StoreError: One is missing, or is neither a local file nor a URL of http or https; or they are too many.
    """
    refuse_secrets(given)
    word = expand_word(given)
    if os.path.isfile(word):
        return [_checked(word)]
    try:
        if _most_tars(word) > MOST_TARS:
            raise StoreError(
                f"{shown(given)}: means more than {MOST_TARS:,} tars; expected the numbers of those that are there"
            )
        urls = list(braceexpand(word))
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{shown(given)}: no pattern ({error}); expected one such as train-{{000000..000003}}.tar"
        ) from error
    return [_checked(url) for url in urls]


def _most_tars(pattern: str) -> int:
    """How many tars a brace pattern means at most."""
    pattern = re.sub(r"\\.", "", pattern, flags=re.DOTALL)  # signs that stand for themselves
    spans = [(int(first), int(last)) for first, last in _NUMBERS.findall(pattern)]
    spans += [(ord(first), ord(last)) for first, last in _LETTERS.findall(pattern)]
    count = math.prod(abs(last - first) + 1 for first, last in spans)
    groups: list[int] = []
    for sign in pattern:
        if sign == "{":
            groups.append(1)
        elif sign == ",":
            groups = [alternatives + 1 for alternatives in groups]
        elif sign == "}" and groups:
            count *= groups.pop()
    return count


def split_tars(words: Sequence[str], others: Sequence[str] = (VAL,)) -> dict[str, list[str]]:
    """List the tars of train and of other splits.

    Words with `val` and no `train` in their last part validate; where there are none, `val` takes the place of `train`.
    Likewise `test`, where that split is asked for.

    Args:
        words: Paths, patterns and URLs.
        others: Splits to list besides train.

    Raises:
        ConfigError: None are named for one of them.
        StoreError: One is missing, refused, or named twice.
    """
    named = {split: [word for word in words if _is_of(split, word)] for split in others}
    train = [word for word in words if not any(word in own for own in named.values())]
    if not train:
        raise ConfigError(
            f"--shards {' '.join(map(shown, words))}: names shards for {PURPOSES[others[0]]} alone; name some to train "
            "from"
        )
    tars = {TRAIN: _expand_all(train)}  # first, since it says what is refused
    for split, own in named.items():
        try:
            tars[split] = _expand_all(own or [word_of(split, word) for word in train])
        except StoreError as error:
            raise StoreError(
                f"{error}. Name the shards for {PURPOSES[split]} by one more --shards, with {split!r} in it"
            ) from error
    return tars


def word_of(split: str, word: str) -> str:
    """The word for the tars of another split that belong to some training tars.

    Raises:
        ConfigError: There is no `train` in its last part.
    """
    last = _last_part(word)
    if TRAIN not in last:
        raise ConfigError(
            f"--shards {word}: has no {TRAIN!r} in its last part, so the shards for {PURPOSES[split]} cannot be told "
            f"from it; rename them, or name those too, by one more --shards, with {split!r} in theirs"
        )
    return word.removesuffix(last) + last.replace(TRAIN, split, 1)


def _is_of(split: str, word: str) -> bool:
    """Whether a word names tars of a split by its last part, of which train wins over val, and val over test."""
    last = _last_part(word)
    return split in last and not any(first in last for first in (TRAIN, VAL, TEST)[: (TRAIN, VAL, TEST).index(split)])


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
    return scheme(url) in FETCHED


def open_shard(url: str) -> io.BufferedReader:
    """Open one of the tars that `expand` gave, with an `Arriving` as its `raw`. Raises StoreError where it cannot be.

    The body of a URL that breaks off ends without an error; `StrictTarInfo` finds that the tar lacks its end.
    """
    checked = _checked(url)
    if not is_fetched(checked):
        try:
            return io.BufferedReader(Arriving(open(checked, "rb")))
        except OSError as error:
            raise StoreError(
                f"{checked}: cannot be opened ({error.strerror}); expected a file that you may read"
            ) from error
    try:
        body = urllib.request.build_opener(_NoFtp, _Http, _Https).open(checked, timeout=TIMEOUT_SECONDS)
        return io.BufferedReader(Arriving(body))
    except urllib.error.HTTPError as error:
        raise StoreError(f"{checked}: cannot be fetched (HTTP {error.code} {error.reason})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: of an address that is none
        raise StoreError(f"{checked}: cannot be fetched ({getattr(error, 'reason', error)})") from error


def _checked(url: str) -> str:
    refuse_secrets(url)
    if is_fetched(url):
        return url
    if url == "-" or scheme(url):
        raise StoreError(
            f"{shown(url)}: is refused, since WebDataset would run a command for it or read what is no file; "
            "expected a path or a URL of http or https. Copy or mount the shards, or give their https address."
        )
    if not os.path.isfile(url):
        raise StoreError(f"{url}: no such file")
    return os.path.abspath(url)
