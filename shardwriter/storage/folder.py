"""A store in a folder, of this machine or of a file system that machines share."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from iianet.errors import StoreError, UnreadableError
from iianet.regular_file import open_regular, read_regular
from shardwriter.format.files import atomic_file, move_into_place
from shardwriter.storage.hold import FileHold, hold_file, readers_of
from shardwriter.storage.lock import build_lock, explained
from shardwriter.storage.storage import Listed, OpenTar, Storage, checked_name


@dataclass(frozen=True)
class Folder(Storage):
    """See `Storage`. Files are replaced by renames, builds exclude each other by flock.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def staging(self) -> Path:
        return self.path

    def absolute(self) -> "Folder":
        return Folder(self.path.absolute())

    def where(self, name: str) -> str:
        return str(self.path / name)

    def exists(self) -> bool:
        with self._explained():
            return self.path.is_dir()

    def files(self) -> Mapping[str, Listed]:
        found: dict[str, Listed] = {}
        with suppress(FileNotFoundError), self._explained():
            for entry in list(os.scandir(self.path)):
                try:
                    if not entry.name.startswith(".") and entry.is_file():
                        status = entry.stat()
                        found[entry.name] = Listed(status.st_size, _version(status))
                except OSError as error:  # deleted just now, or a link that leads nowhere
                    if not (isinstance(error, FileNotFoundError) or entry.is_symlink()):
                        raise
        return found

    def version(self, name: str) -> str | None:
        with suppress(FileNotFoundError), self._explained(name):
            return _version(self._at(name).stat())
        return None

    def open(self, name: str) -> IO[bytes]:
        with self._explained(name):
            return read_regular(self._at(name))

    def open_tar(self, name: str, size: int, digest: str) -> OpenTar:  # noqa: ARG002 (a cache would need them)
        return OpenTar(open_regular(self._at(name)), is_checked=False)

    def publish(self, files: Iterable[tuple[Path, str]]) -> None:
        with explained(self.path):
            for temporary, name in files:
                move_into_place(temporary, self._at(name))

    def write(self, name: str, content: bytes) -> None:
        with explained(self.path), atomic_file(self._at(name)) as stream:
            stream.write(content)

    def delete(self, names: Iterable[str]) -> None:
        with explained(self.path):
            for name in names:
                self._at(name).unlink(missing_ok=True)

    def commit(self, name: str, content: bytes, version: str | None) -> str:
        if self.version(name) != version:  # other builds are excluded by the lock, and people are not
            raise StoreError(
                f"{self.where(name)}: has changed since this build opened the store; nothing was overwritten. Run the "
                "command again to resume"
            )
        self.write(name, content)
        return _version(self._at(name).stat())

    def write_lock(self, *, patient: bool = False) -> AbstractContextManager[None]:
        return build_lock(self.path, patient=patient)

    def hold(self, name: str) -> FileHold | None:
        return hold_file(self._at(name))

    def readers(self, name: str) -> AbstractContextManager[str | None]:
        return readers_of(self._at(name))

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(next(part for part in (self.path, *self.path.parents) if part.exists())).free

    def _at(self, name: str) -> Path:
        return self.path / checked_name(name, self.name)

    @contextmanager
    def _explained(self, name: str = "") -> Iterator[None]:
        """Say that a file cannot be read, which is not damage; that there is none is for the caller to say."""
        try:
            yield
        except NotADirectoryError as error:  # a folder on the way to it is a file
            raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnreadableError(str(error.filename or self.path / name), error) from error


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_ino}"
