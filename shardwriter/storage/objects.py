"""The objects directly below a URL of an object store: list, get, put, delete.

By obstore, which retries what may pass. Its threads do not survive a fork: a process that was forked from one that has
used it, as loader workers are, downloads through a helper process (`download_helper`).
"""

import asyncio
import math
import os
import re
import uuid
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from iianet.errors import StoreError, UnreachableError
from shardwriter.format.digest import digest_of
from shardwriter.storage.download_helper import download_in_helper, has_forked, serve
from shardwriter.storage.storage import Listed

ATTEMPTS = 5
READ_TIMEOUT = timedelta(seconds=60)
"""Longest wait for a server's next bytes."""
REQUEST_SECONDS = 600.0
"""Longest time for a request as a whole, beside what `SLOWEST` allows for its bytes: a server may drip."""
SLOWEST = 50_000
"""Bytes a second that a server must send or take at least."""
SMALL = 100 << 20
"""Bytes that a file may take whose size nobody knows, as for the time of a request; most are far smaller."""
LARGEST_SMALL = 2 << 30
"""No record, plan or index has more bytes; what has is not downloaded."""
LISTING_SECONDS = 600.0
"""Longest time for a listing: a million files take two minutes."""
LONGEST_RETRY = timedelta(minutes=3)
PROBE_PREFIX = ".clock-"
_AZURE_CURE = (
    "; give az://container/prefix and set AZURE_STORAGE_ACCOUNT_NAME in the environment, or write "
    "abfss://container@account.dfs.core.windows.net/prefix"
)


class Conflict(Exception):
    """Somebody else has written an object meanwhile."""


@dataclass(frozen=True)
class Objects:
    """The objects directly below a URL. Safe to send to other processes: each connects anew.

    Attributes:
        url: Without a slash at its end, as `locate.open_storage` has checked it.
    """

    url: str
    _generations: dict[tuple[str, str], str | None] = field(default_factory=dict, compare=False, repr=False)
    """Google's, of what this process has written, by name and version."""

    def list(self) -> dict[str, Listed]:
        """The objects directly below, by name; none where the prefix is empty."""
        with self._explained("listed"):
            found = _run(_list(self._store()))
            return {str(meta["path"]): _listed(meta) for meta in found["objects"]}

    def head(self, name: str) -> Listed | None:
        """What a listing would show of an object; None where there is none."""
        try:
            with self._explained("read", name):
                return _listed(obstore.head(self._store(), name))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> tuple[bytes, str] | None:
        """A small object whole, and its version; None where there is none."""
        try:
            with self._explained("read", name):
                found = obstore.get(self._store(), name)
                if found.meta["size"] > SMALL:
                    raise StoreError(f"{self.url}/{name}: has {found.meta['size']:,} bytes, expected a small file")
                return bytes(found.bytes()), _version(found.meta)
        except FileNotFoundError:
            return None

    def age(self, name: str) -> float:
        """Seconds since an object was written, by the server's clock. Raises FileNotFoundError where there is none."""
        probe = f"{PROBE_PREFIX}{uuid.uuid4().hex[:8]}"
        self.write(probe, b"")
        try:
            with self._explained("read", name):
                written, now = (obstore.head(self._store(), each)["last_modified"] for each in (name, probe))
            return float((now - written).total_seconds())
        finally:
            self.delete([probe])

    def download(self, name: str, path: Path, *, size: int | None = None, digest: str | None = None) -> Listed:
        """Download an object to a path, which is not atomic.

        Args:
            name: Of the object.
            path: To write.
            size: Bytes that are expected.
            digest: xxh3_64 that is expected, hexadecimal.

        Returns:
            What arrived, which may be newer than what was listed.

        Raises:
            FileNotFoundError: There is none.
            StoreError: It is not what is expected, or cannot be had (UnreachableError); names the object.
        """
        if has_forked():
            return download_in_helper(self.url, name, path, size=size, digest=digest)
        arrived: set[str] = set()
        while True:
            with self._explained("read", name), path.open("wb") as stream:
                arriving = obstore.get(self._store(size or SMALL), name)
                sent, limit = int(arriving.meta["size"]), LARGEST_SMALL if size is None else size
                for chunk in arriving.stream() if sent <= limit else ():
                    stream.write(chunk)
            found = (
                _describe(path, size, digest) if sent <= limit else f"has {sent:,} bytes, expected {limit:,} at most"
            )
            if found is None:
                return _listed(arriving.meta)
            if found in arrived or len(arrived) == ATTEMPTS - 1:  # the same twice: it is what lies there
                raise StoreError(
                    f"{self.url}/{name}: {found}: it was written again since the store was opened, or is damaged. "
                    "Start again; if that says the same, delete this object and its .index beside it, and run "
                    "build-shards, or give write_store the same samples again, whichever made the store"
                )
            arrived.add(found)

    def write(self, name: str, content: bytes | Path) -> str:
        """Write an object, of bytes or of a file. Returns its version."""
        with self._explained("written", name):
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            return _version(obstore.put(self._store(size), name, content))

    def replace(self, name: str, content: bytes, version: str | None) -> str:
        """Write a small object if it still has `version`; None: if there is none. Returns its new version.

        Raises:
            Conflict: It has another version.
        """
        mode: Any = "create" if version is None else {"e_tag": version}
        if version is not None and self.url.startswith("gs:"):
            # Google's conditions are generations, which obstore reports of what it has written itself, and of nothing
            # else: at the first commit of a build the lease guards the moment between, later ones are conditional.
            facts = self.head(name)
            if facts is None or facts.version != version:
                raise Conflict(name)
            generation = self._generations.get((name, version))
            mode = {"e_tag": version, "version": generation} if generation else "overwrite"
        try:
            with self._explained("written", name):
                put = obstore.put(self._store(), name, content, mode=mode)
                self._generations[name, _version(put)] = put["version"]
                return _version(put)
        except (AlreadyExistsError, PreconditionError, StoreError) as error:
            present = self.read(name)
            if present is not None and present[0] == content:  # our own: it was written, and the answer was lost
                return present[1]
            if isinstance(error, StoreError) and not (present is None and version is not None):
                raise
            raise Conflict(name) from error

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        paths = list(names)
        if paths:
            with self._explained("deleted", paths[0]):
                try:
                    obstore.delete(self._store(), paths)
                except FileNotFoundError:  # not of S3: one is gone, and those after it may still be there
                    for path in paths:
                        with suppress(FileNotFoundError):
                            obstore.delete(self._store(), path)

    def _store(self, size: int = 0) -> Any:
        """The client for requests of at most so many bytes; there are few of them, by powers of two of seconds."""
        seconds = 2 ** math.ceil(math.log2(REQUEST_SECONDS + size / SLOWEST))
        return _connect(self.url, os.getpid(), endpoint(), seconds)

    @contextmanager
    def _explained(self, what: str, name: str = "") -> Iterator[None]:
        """Say in plain words what could not be done, and the cure."""
        where = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except (FileNotFoundError, BaseError) as error:
            is_gone = isinstance(error, FileNotFoundError)
            if is_gone and what != "written":
                raise
            if is_gone or "NoSuchBucket" in str(error):
                raise UnreachableError(f"{where}: cannot be {what}, there is no such bucket; make it first") from error
            check = "the network, the server, endpoint and credentials"
            if isinstance(error, PermissionDeniedError | UnauthenticatedError):
                check = "endpoint, credentials and rights in the environment"
            raise UnreachableError(
                f"{where}: cannot be {what}{_attempts(error)} ({_silence(error)}{_first_line(error)}); check {check}, "
                "then run the command again to resume"
            ) from error


def serve_downloads() -> None:
    """Download what is asked for on standard input: the program of the process that helps forked ones."""
    serve(lambda url, **request: Objects(url).download(**request))


def endpoint() -> str:
    """Address of the server of s3 URLs, as the environment says; empty for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@lru_cache(maxsize=32)
def _connect(url: str, _pid: int, server: str, seconds: float) -> Any:
    if server and "://" not in server:
        raise UnreachableError(f"AWS_ENDPOINT_URL={server}: not a URL; expected one such as https://host:9000")
    options: Any = {
        "allow_http": server.startswith("http://"),
        "timeout": timedelta(seconds=seconds),
        "read_timeout": READ_TIMEOUT,
    }
    retry: Any = {"max_retries": ATTEMPTS - 1, "retry_timeout": LONGEST_RETRY}
    extra: Any = {}
    if url.startswith("s3") and server:
        extra["endpoint"] = server
    if url.startswith("s3") and os.environ.get("AWS_PROFILE"):
        extra["credential_provider"] = _profile()
    try:
        return from_url(url, client_options=options, retry_config=retry, **extra)
    except BaseError as error:
        cure = "" if url.startswith(("s3", "gs")) else _AZURE_CURE
        raise UnreachableError(f"{url}: cannot be opened ({_first_line(error)}){cure}") from error


def _profile() -> Any:
    """Credentials of the profile that AWS_PROFILE names. Raises StoreError where it has none, or boto3 is missing."""
    try:
        from boto3 import Session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise UnreachableError(
            "AWS_PROFILE: profiles are read by boto3, which is not installed; pip install boto3, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    try:
        return Boto3CredentialProvider(Session())
    except (BotoCoreError, ValueError) as error:
        raise UnreachableError(
            f"AWS_PROFILE={os.environ['AWS_PROFILE']}: no credentials ({_first_line(error)}); fix ~/.aws/config and "
            "~/.aws/credentials, or name another profile"
        ) from error


def _listed(meta: Any) -> Listed:
    return Listed(int(meta["size"]), _version(meta))


def _version(meta: Any) -> str:
    """The ETag, as conditions need it: Azure's listings leave out the quotation marks."""
    tag = str(meta["e_tag"] or meta.get("last_modified"))
    return tag if tag.endswith('"') else f'"{tag}"'


def _describe(path: Path, size: int | None, digest: str | None) -> str | None:
    """What is wrong with a file that arrived; None where nothing is."""
    if size is not None and (found := path.stat().st_size) != size:
        return f"{found:,} bytes arrived, expected {size:,}"
    if digest is not None:
        with path.open("rb") as stream:
            if (read := digest_of(stream)[0]) != digest:
                return f"its digest is {read}, its index says {digest}"
    return None


def _attempts(error: BaseException) -> str:
    """How often obstore has tried; nothing where it did not try again, as after some timeouts, or does not say."""
    if found := re.search(r"after (\d+) retries", str(error)):
        return f" after {int(found[1]) + 1} attempts"
    return f" after {ATTEMPTS} attempts" if "response body error" in str(error) else ""


def _silence(error: BaseException) -> str:
    """What happened in plain words, where a server was too slow: obstore says so in its last lines alone."""
    if "TimedOut" not in str(error):
        return ""
    return (
        f"the server sent nothing for {READ_TIMEOUT.total_seconds():g} s, or less than {SLOWEST / 1000:g} kB a second: "
    )


async def _list(store: Any) -> Any:
    try:
        async with asyncio.timeout(LISTING_SECONDS):
            return await obstore.list_with_delimiter_async(store)
    except TimeoutError as error:
        raise UnreachableError(
            f"the listing has no end after {LISTING_SECONDS / 60:g} minutes; give a store a prefix of its own, where "
            "nothing else lies"
        ) from error


def _run(waiting: Coroutine[Any, Any, Any]) -> Any:
    """Wait for a coroutine, also in a notebook, whose thread has a loop that runs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, waiting).result()


def _first_line(error: BaseException) -> str:
    text = str(error).partition("\n")[0].strip()
    return text[:300] or type(error).__name__
