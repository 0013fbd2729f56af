"""The objects directly below a URL of an object store: list, get, put, delete.

By obstore, which retries what may pass. Its threads do not survive a fork: a process that was forked from one that has
used it, as loader workers are, downloads through a helper process (`download_helper`).
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from iianet.errors import StoreError
from shardwriter.format.digest import digest_of
from shardwriter.storage.download_helper import download_in_helper, has_forked, serve

ATTEMPTS = 5
READ_TIMEOUT = timedelta(seconds=60)
"""Longest wait for a server's next bytes."""
LONGEST_RETRY = timedelta(minutes=3)
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")
CONTAINERS = ("abfs", "abfss", "az", "azure", "adl")
"""Azure's container@account is not a credential."""
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)")


class ObjectFacts(NamedTuple):
    """One object, as a listing shows it.

    Attributes:
        size: Bytes.
        version: Its ETag, which changes when it is written again.
        modified: When it was written, by the server's clock, seconds since 1970.
    """

    size: int
    version: str
    modified: float


class Conflict(Exception):
    """Somebody else has written an object meanwhile."""


@dataclass(frozen=True)
class Objects:
    """The objects directly below a URL. Safe to send to other processes: each connects anew.

    Attributes:
        url: Without a slash at its end.
    """

    url: str

    @classmethod
    def at(cls, url: str) -> "Objects":
        """Check a URL. Raises StoreError where it is not a store's, or holds credentials."""
        found = _URL.fullmatch(url)
        scheme, path = found.groups() if found else ("", "")
        if scheme not in SCHEMES or not path.strip("/") or "::" in url:
            raise StoreError(
                f"{url.partition('://')[0]}://...: not a store URL; expected {', '.join(SCHEMES)}, such as "
                "s3://bucket/prefix"
            )
        if ("@" in path.partition("/")[0] and scheme not in CONTAINERS) or "?" in path:
            raise StoreError(
                f"{scheme}://...: has credentials or options in it, which would end up in logs; give them by the "
                "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL, ...)"
            )
        return cls(url.rstrip("/"))

    def list(self) -> dict[str, ObjectFacts]:
        """The objects directly below, by name; none where the prefix is empty."""
        with self._explained("listed"):
            found = obstore.list_with_delimiter(self._store())
            return {str(meta["path"]): _facts(meta) for meta in found["objects"]}

    def head(self, name: str) -> ObjectFacts | None:
        """What a listing would show of an object; None where there is none."""
        try:
            with self._explained("read", name):
                return _facts(obstore.head(self._store(), name))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """A small object whole. Raises FileNotFoundError where there is none."""
        with self._explained("read", name):
            return bytes(obstore.get(self._store(), name).bytes())

    def download(self, name: str, path: Path, *, size: int | None = None, digest: str | None = None) -> ObjectFacts:
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
            StoreError: It cannot be had, or is not what is expected; names the object.
        """
        if has_forked():
            return ObjectFacts(*download_in_helper(self.url, name, path, size=size, digest=digest))
        arrived: set[str] = set()
        while True:
            with self._explained("read", name), path.open("wb") as stream:
                arriving = obstore.get(self._store(), name)
                for chunk in arriving.stream():
                    stream.write(chunk)
            found = _describe(path, size, digest)
            if found is None:
                return _facts(arriving.meta)
            if found in arrived or len(arrived) == ATTEMPTS - 1:  # the same twice: it is what lies there
                raise StoreError(
                    f"{self.url}/{name}: {found}: it was written again since the store was opened, or is damaged. "
                    "Start again; if that says the same, delete this object and its .index beside it, and run "
                    "build-shards, which writes both"
                )
            arrived.add(found)

    def write(self, name: str, content: bytes | Path) -> str:
        """Write an object, of bytes or of a file. Returns its version."""
        with self._explained("written", name):
            return _version(obstore.put(self._store(), name, content))

    def replace(self, name: str, content: bytes, version: str | None) -> str:
        """Write a small object if it still has `version`; None: if there is none. Returns its new version.

        Raises:
            Conflict: It has another version.
        """
        if version is not None and self.url.startswith("gs:"):
            # Google's conditions are generations, which obstore does not tell: the lease guards the moment between.
            facts = self.head(name)
            if facts is None or facts.version != version:
                raise Conflict(name)
            return self.write(name, content)
        mode: Any = "create" if version is None else {"e_tag": version}
        try:
            with self._explained("written", name):
                return _version(obstore.put(self._store(), name, content, mode=mode))
        except (AlreadyExistsError, PreconditionError, StoreError) as error:
            present = self._present(name)
            if present is not None and present[0] == content:  # our own: it was written, and the answer was lost
                return present[1]
            if isinstance(error, StoreError) and not (present is None and version is not None):
                raise
            raise Conflict(name) from error

    def _present(self, name: str) -> tuple[bytes, str] | None:
        """A small object whole, and its version; None where there is none."""
        try:
            with self._explained("read", name):
                found = obstore.get(self._store(), name)
                return bytes(found.bytes()), _version(found.meta)
        except FileNotFoundError:
            return None

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are gone already count as deleted."""
        paths = list(names)
        if paths:
            with self._explained("deleted", paths[0]):
                try:
                    obstore.delete(self._store(), paths)
                except FileNotFoundError:  # not of S3: one is gone, and those after it may still be there
                    for path in paths:
                        with suppress(FileNotFoundError):
                            obstore.delete(self._store(), path)

    def _store(self) -> Any:
        return _connect(self.url, os.getpid(), _endpoint())

    @contextmanager
    def _explained(self, what: str, name: str = "") -> Iterator[None]:
        """Say in plain words what could not be done, and the cure."""
        where = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except FileNotFoundError as error:
            if what == "written":
                raise StoreError(f"{where}: cannot be written, there is no such bucket; make it first") from error
            raise
        except (AlreadyExistsError, PreconditionError):
            raise
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreError(
                f"{where}: cannot be {what} ({_first_line(error)}); check endpoint, credentials and rights in the "
                "environment, then run the command again to resume"
            ) from error
        except BaseError as error:
            if "NoSuchBucket" in str(error):
                raise StoreError(f"{where}: cannot be {what}, there is no such bucket; make it first") from error
            raise StoreError(
                f"{where}: cannot be {what} after {ATTEMPTS} attempts ({_first_line(error)}); check the network, the "
                "server, endpoint and credentials, then run the command again to resume"
            ) from error


def serve_downloads() -> None:
    """Download what is asked for on standard input: the program of the process that helps forked ones."""
    serve(lambda url, **request: Objects(url).download(**request))


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@lru_cache(maxsize=8)
def _connect(url: str, _pid: int, endpoint: str) -> Any:
    if endpoint and _URL.fullmatch(endpoint.lower()) is None:
        raise StoreError(f"AWS_ENDPOINT_URL={endpoint}: not a URL; expected one such as https://host:9000")
    options: Any = {
        "allow_http": endpoint.startswith("http://"),
        "timeout": timedelta(days=1),  # for the whole of a large tar; what must not take long is the next bytes
        "read_timeout": READ_TIMEOUT,
    }
    retry: Any = {"max_retries": ATTEMPTS - 1, "retry_timeout": LONGEST_RETRY}
    extra: Any = {}
    if url.startswith("s3") and endpoint:
        extra["endpoint"] = endpoint
    if url.startswith("s3") and os.environ.get("AWS_PROFILE"):
        extra["credential_provider"] = _profile()
    try:
        return from_url(url, client_options=options, retry_config=retry, **extra)
    except BaseError as error:
        raise StoreError(f"{url}: not a store URL that can be opened ({_first_line(error)})") from error


def _profile() -> Any:
    """Credentials of the profile that AWS_PROFILE names. Raises StoreError where it has none, or boto3 is missing."""
    try:
        from boto3 import Session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise StoreError(
            "AWS_PROFILE: profiles are read by boto3, which is not installed; pip install boto3, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    try:
        return Boto3CredentialProvider(Session())
    except (BotoCoreError, ValueError) as error:
        raise StoreError(
            f"AWS_PROFILE={os.environ['AWS_PROFILE']}: no credentials ({_first_line(error)}); fix ~/.aws/config and "
            "~/.aws/credentials, or name another profile"
        ) from error


def _facts(meta: Any) -> ObjectFacts:
    return ObjectFacts(int(meta["size"]), _version(meta), meta["last_modified"].timestamp())


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


def _first_line(error: BaseException) -> str:
    text = str(error).partition("\n")[0].strip()
    return text[:300] or type(error).__name__
