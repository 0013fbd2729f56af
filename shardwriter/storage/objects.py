"""The objects of a store below a URL of any file system that fsspec knows: list, get, put, delete, with retries."""

import errno
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
import tenacity
import xxhash

from iianet.errors import StoreError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

ATTEMPTS = 5
LONGEST_WAIT_SECONDS = 20.0
FETCHED_AS_TARS = ("http", "https")
EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
CONTAINERS = ("abfs", "abfss", "az")
"""Azure's container@account is no credential."""
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Faults of the folder that is written to here, and not of the network."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)")


class RemoteFile(NamedTuple):
    """One object, as a listing shows it.

    Attributes:
        size: Bytes.
        version: What changes when it is written again: its ETag, or where there is none its time.
        modified: When it was written, by the server's clock, seconds since 1970; None where it does not tell.
    """

    size: int
    version: str
    modified: float | None


class Torn(OSError):
    """What arrived is not what is there."""


class Damaged(Torn):
    """The same arrived twice, and is not what is expected: it is what lies there."""


@dataclass(frozen=True)
class RemoteStore:
    """The objects directly below a URL. Safe to send to other processes: each connects anew.

    Attributes:
        url: Without a slash at its end.
    """

    url: str

    @classmethod
    def at(cls, url: str) -> "RemoteStore":
        """Check a URL. Raises StoreError where it is none, holds credentials, or its file system is not installed."""
        found = _URL.fullmatch(url)
        protocol, path = found.groups() if found else ("", "")
        if "::" in url or protocol not in fsspec.available_protocols() or not path.strip("/"):
            raise StoreError(f"{url}: is no URL of a store; expected one such as s3://bucket/prefix")
        if ("@" in path.partition("/")[0] and protocol not in CONTAINERS) or "?" in path:
            raise StoreError(
                f"{protocol}://...: has credentials or options in it, which would end in logs; give them by the "
                "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL, ...)"
            )
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            package = EXTRAS.get(protocol, f"fsspec's package for {protocol}")
            cure = "pip install -e '.[s3]' in the project's folder" if package == "s3fs" else f"pip install {package}"
            raise StoreError(f"{url}: {package} is not installed; {cure}") from error
        return cls(url.rstrip("/"))

    def list(self) -> dict[str, RemoteFile]:
        """The objects directly below, by name; none where the prefix is empty."""

        def ask() -> dict[str, RemoteFile]:
            system, root = self._connect()
            try:
                system.invalidate_cache()
                found = system.ls(root, detail=True)
            except FileNotFoundError:
                return {}
            return {
                info["name"].rstrip("/").rpartition("/")[2]: _described(info)
                for info in found
                if info["type"] == "file"
            }

        return self._retried("listed", "", ask)

    def get(self, name: str, path: Path, *, size: int | None = None, digest: str | None = None) -> None:
        """Download an object to a path, which is not atomic.

        Args:
            name: Of the object.
            path: To write.
            size: Bytes that are expected.
            digest: xxh3_64 that is expected, hexadecimal.

        Raises:
            FileNotFoundError: There is none.
            StoreError: It cannot be had, or is not what is expected, after retries; names the object.
        """

        arrived: set[str] = set()

        def download() -> None:
            system, root = self._connect()
            system.get_file(f"{root}/{name}", str(path))
            found = path.stat().st_size
            if size is not None and found != size:
                raise Torn(f"{found:,} bytes arrived, expected {size:,}")
            if digest is not None and (read := _digest(path)) != digest:
                kind = Damaged if read in arrived else Torn
                arrived.add(read)
                raise kind(f"its digest is {read}, its index says {digest}")

        self._retried("read", name, download)

    def read(self, name: str) -> bytes:
        """A small object whole. Raises as `get` does."""

        def fetch() -> bytes:
            system, root = self._connect()
            return bytes(system.cat_file(f"{root}/{name}"))

        return self._retried("read", name, fetch)

    def put(self, path: Path, name: str, before: Callable[[], None] = lambda: None) -> RemoteFile:
        """Upload a file.

        Args:
            path: Of the file.
            name: Of the object.
            before: Is called before each attempt; what it raises ends them.

        Raises:
            StoreError: That fails after retries.
        """

        def upload() -> RemoteFile:
            before()
            system, root = self._connect()
            system.put_file(str(path), f"{root}/{name}")
            size, found = path.stat().st_size, _described(system.info(f"{root}/{name}"))
            if found.size != size:
                raise Torn(f"{found.size:,} bytes are there after {size:,} were written")
            return found

        return self._retried("written", name, upload)

    def write(self, name: str, content: bytes) -> None:
        """Write a small object. Raises as `put` does."""

        def send() -> None:
            system, root = self._connect()
            system.pipe_file(f"{root}/{name}", content)

        self._retried("written", name, send)

    def delete(self, name: str, before: Callable[[], None] = lambda: None) -> None:
        """Delete an object, if it is there; `before` as `put` takes it. Raises StoreError where that fails."""

        def remove() -> None:
            before()
            system, root = self._connect()
            try:
                system.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

        self._retried("deleted", name, remove)

    def _connect(self) -> tuple[Any, str]:
        """The file system, which fsspec keeps for each process, and our path in it."""
        system, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        return system, str(root)

    def _retried(self, what: str, name: str, call: Callable[[], Result]) -> Result:
        """Call again, later and later, where the fault may pass."""
        url = f"{self.url}/{name}".rstrip("/")

        def say(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            logger.info("%s: attempt %d of %d: %s", url, state.attempt_number, ATTEMPTS, _words(error))

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_SECONDS),
            retry=tenacity.retry_if_exception(_may_pass),
            before_sleep=say,
            reraise=True,
        )
        with _explained(url, what):
            return retrying(call)


@contextmanager
def _explained(url: str, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if what == "written":
            raise StoreError(f"{url}: cannot be written, there is no such bucket or folder; make it first") from error
        raise
    except _faults() as error:
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise
        if isinstance(error, Damaged):
            raise StoreError(
                f"{url}: {error}: it was written anew since the store was opened, or is damaged. Start again; if that "
                "says the same, delete this object and its .index beside it, and run build-shards, which writes both"
            ) from error
        passing = f" after {ATTEMPTS} attempts" if _may_pass(error) else ""
        cure = (
            "check the network and the server"
            if passing
            else "check endpoint, credentials and rights, of the environment"
        )
        raise StoreError(
            f"{url}: cannot be {what}{passing} ({_words(error)}); {cure}, then run the command again to go on"
        ) from error


def _faults() -> tuple[type[BaseException], ...]:
    """What file systems raise: OSError, and errors of the libraries below them, of those that are loaded."""
    names = (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
    )
    loaded = [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]
    return (OSError, ValueError, *loaded)  # botocore raises ValueError of endpoints that are no URLs


def _may_pass(error: BaseException) -> bool:
    """Whether to try again: not where something is missing or forbidden."""
    if isinstance(error, FileNotFoundError | PermissionError | Damaged):
        return False
    if isinstance(error, OSError) and error.errno in _LOCAL:
        return False
    return (
        isinstance(error, _faults())
        and not isinstance(error, ValueError)
        and type(error).__name__ not in ("NoCredentialsError", "ProfileNotFound")
    )


def _words(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _described(info: dict[str, Any]) -> RemoteFile:
    times = [info[name] for name in ("LastModified", "mtime", "created", "updated", "last_modified") if info.get(name)]
    modified = _seconds(times[0]) if times else None
    version = info.get("ETag") or info.get("etag") or info.get("md5Hash") or modified
    if version is None:  # all that is told of it
        version = xxhash.xxh3_64_hexdigest(repr(sorted(info.items())).encode())
    return RemoteFile(int(info["size"]), str(version), modified)


def _seconds(time: Any) -> float | None:
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return float(time) if isinstance(time, int | float) else None


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as stream:
        while chunk := stream.read(4 << 20):
            digest.update(chunk)
    return str(digest.hexdigest())
