"""Where the files of a store lie. ADD A BACKEND: derive from `Storage` in a file of its own, named in `locate.py`.

A store is a flat set of named files. A storage object is made once, from what --shards names, and passed along; nobody
else asks what kind it is, but what works by locks of a folder: ranks, Ray and --reindex. It may be sent to other
processes.
"""

# ruff: noqa: ARG002 (what is inherited needs no arguments)

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from iianet.errors import StoreError


class Listed(NamedTuple):
    """A file, as a listing shows it.

    Attributes:
        size: Bytes.
        version: Changes when the file is written again.
    """

    size: int
    version: str


class OpenTar(NamedTuple):
    """A tar that was opened for reading: its descriptor, and whether its digest was checked just now."""

    descriptor: int
    is_checked: bool


def checked_name(name: str, where: str) -> str:
    """A name of a file directly in a store; names come out of plans and indexes, which anybody may have written.

    Raises:
        StoreError: It would lead elsewhere; nothing outside of a store is ever opened, written or deleted.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise StoreError(
            f"{where}: names a file {name!r}, which is not in the store; expected a name without folders. The store is "
            "damaged, or somebody wrote that to do harm: do not use it"
        )
    return name


class Hold(Protocol):
    """Keeps the shards of a store that was opened from being deleted, as long as the object lives."""


class Storage(Protocol):
    """A place for stores. A backend inherits what a method of its own would not do otherwise.

    Every method raises StoreError, which names the file, where the place cannot be reached or written.
    """

    num_uploads: int = 0
    """Shards that are worth publishing at a time, beside the writing of others; 0 where publishing is a rename."""
    num_downloads: int = 1
    """Tars that are worth opening at a time in each process that reads ahead."""
    keep_replaced_days: float = 0.0
    """How long replaced shards stay at least, where the config does not say; 0 where it can be seen who reads them."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What users call the store: a folder's path, or a URL."""

    @property
    @abstractmethod
    def staging(self) -> Path:
        """Folder of this machine where shards are written before they are published; `write_lock` makes it."""

    def absolute(self) -> "Storage":
        """The same for processes with another working directory."""
        return self

    @abstractmethod
    def where(self, name: str) -> str:
        """What users call a file."""

    def exists(self) -> bool:
        """Whether there is a place at all, if only an empty one."""
        return True

    @abstractmethod
    def files(self) -> Mapping[str, Listed]:
        """All files, by name."""

    @abstractmethod
    def version(self, name: str) -> str | None:
        """What a listing would show now as the version of a file; None where it is not there."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a small file, as `files` listed it last or as it is now. Raises FileNotFoundError where it is gone."""

    def prefetch(self, names: Iterable[str]) -> None:
        """Get small files ready to be opened, many at a time."""
        return

    @abstractmethod
    def open_tar(self, name: str, size: int, digest: str) -> OpenTar:
        """Open a tar that should have this size and digest (xxh3_64). Raises OSError where it cannot be opened."""

    def is_kept(self, name: str, digest: str) -> bool:
        """Whether an opened tar is still there; caches delete tars to make room, and open ones keep their disk."""
        return True

    def forget(self, name: str, digest: str) -> bool:
        """Delete a copy of a tar, so that it is fetched again; False where it is the tar itself, which stays."""
        return False

    @abstractmethod
    def publish(self, files: Iterable[tuple[Path, str]]) -> None:
        """Move files out of `staging` to their names, in this order, each whole or not at all."""

    def publish_staged(self, is_wanted: Callable[[str], bool]) -> list[str]:
        """Publish whole shards that an earlier run left in `staging`, and delete what is not wanted; their names."""
        return []

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Publish a small file, whole or not at all."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Delete files, in any order; those that are gone already are no error."""

    @abstractmethod
    def commit(self, name: str, content: bytes, version: str | None) -> str:
        """Replace a small file if it still has `version` (None: is not there).

        Returns:
            The new version.

        Raises:
            StoreError: Somebody else has written it meanwhile.
        """

    @abstractmethod
    def write_lock(self, *, patient: bool = False) -> AbstractContextManager[None]:
        """Hold the place against other builds; `patient` waits for one that holds it for a moment.

        Raises:
            StoreError: Another build holds it, which is named.
        """

    def check_lock(self) -> None:
        """Ask now and then while others write for us. Raises StoreError where the write lock was lost."""
        return

    def hold(self, name: str) -> Hold | None:
        """Mark a plan as read by this process; None where nobody would see the mark."""
        return None

    def readers(self, name: str) -> AbstractContextManager[str | None]:
        """Inside the block: why a plan must not be deleted, for somebody reads it; None where nobody does."""
        return nullcontext()

    def free_bytes(self) -> int | None:
        """Room for new shards; None where it is not limited."""
        return None


class StoredTar(NamedTuple):
    """A tar of a store, as its index describes it.

    Attributes:
        storage: Where it lies.
        name: File name.
        size: Bytes.
        digest: xxh3_64, hexadecimal.
    """

    storage: Storage
    name: str
    size: int
    digest: str

    @property
    def where(self) -> str:
        """What users call it."""
        return self.storage.where(self.name)

    def open(self) -> OpenTar:
        """Open it. Raises OSError where that cannot be."""
        return self.storage.open_tar(self.name, self.size, self.digest)

    def is_kept(self) -> bool:
        """Whether it is still there, after it was opened."""
        return self.storage.is_kept(self.name, self.digest)

    def forget(self) -> bool:
        """Delete a copy of it; False where it is the tar itself, which stays."""
        return self.storage.forget(self.name, self.digest)
