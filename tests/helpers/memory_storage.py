"""A storage of a few dozen lines: what the product asks of one, and no more."""

import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import IO, Any

from iianet.errors import StoreError
from shardwriter.storage.storage import Listed, OpenTar, Storage

_versions = count()


@dataclass
class _Place:
    """Files by name with their versions, who writes, and how many read each plan."""

    content: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    reading: Counter[str] = field(default_factory=Counter)


_places: dict[Path, _Place] = {}


class _Held:
    """See `Hold`; a copy of it, which another process gets, holds nothing."""

    def __init__(self, reading: Counter[str], name: str) -> None:
        reading[name] += 1
        weakref.finalize(self, reading.subtract, [name])

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class MemoryStorage(Storage):
    """See `Storage`: files in a dict of this process. What must be a file of the system lies in a folder."""

    folder: Path
    num_uploads = 1

    @property
    def place(self) -> _Place:
        return _places.setdefault(self.folder, _Place())

    @property
    def name(self) -> str:
        return f"memory {self.folder.name}"

    @property
    def staging(self) -> Path:
        return self.folder / "staging"

    def absolute(self) -> "MemoryStorage":
        return MemoryStorage(self.folder.absolute())

    def where(self, name: str) -> str:
        return f"{self.name}/{name}"

    def files(self) -> Mapping[str, Listed]:
        return {name: Listed(len(content), version) for name, (content, version) in self.place.content.items()}

    def version(self, name: str) -> str | None:
        return self.place.content[name][1] if name in self.place.content else None

    def open(self, name: str) -> IO[bytes]:
        if name not in self.place.content:
            raise FileNotFoundError(self.where(name))
        return BytesIO(self.place.content[name][0])

    def open_tar(self, name: str, size: int, digest: str) -> OpenTar:  # noqa: ARG002 (nothing is damaged on the way)
        copy = self._copy(name)
        if not copy.exists():
            with self.open(name) as stream:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(stream.read())
        return OpenTar(os.open(copy, os.O_RDONLY), is_checked=False)

    def is_kept(self, name: str, digest: str) -> bool:  # noqa: ARG002
        return self._copy(name).exists()

    def forget(self, name: str, digest: str) -> bool:  # noqa: ARG002
        self._copy(name).unlink(missing_ok=True)
        return True

    def publish(self, files: Iterable[tuple[Path, str]]) -> None:
        for temporary, name in files:
            self.write(name, temporary.read_bytes())
            temporary.unlink()

    def write(self, name: str, content: bytes) -> None:
        self.place.content[name] = content, f"version {next(_versions)}"

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.place.content.pop(name, None)

    def commit(self, name: str, content: bytes, version: str | None) -> str:
        if self.version(name) != version:
            raise StoreError(f"{self.where(name)}: was changed meanwhile")
        self.write(name, content)
        return self.place.content[name][1]

    @contextmanager
    def write_lock(self, *, patient: bool = False) -> Iterator[None]:
        if not self.place.lock.acquire(blocking=patient):
            raise StoreError(f"{self.name}: another build is writing to it (process {os.getpid()})")
        try:
            self.staging.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            self.place.lock.release()

    def hold(self, name: str) -> _Held:
        return _Held(self.place.reading, name)

    @contextmanager
    def readers(self, name: str) -> Iterator[str | None]:
        yield "it is being read" if self.place.reading[name] else None

    def _copy(self, name: str) -> Path:
        return self.folder / "copies" / name
