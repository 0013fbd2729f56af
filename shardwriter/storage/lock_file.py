"""What a lease needs, by files of a folder: for file systems without locks, as some that machines share."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iianet.errors import StoreError
from shardwriter.format.files import open_regular, temporary_path, write_synced
from shardwriter.storage.lease import LONGEST_LEASE
from shardwriter.storage.storage import Conflict, Listed


@dataclass(frozen=True)
class LockFiles:
    """See `LeaseFiles`.

    Attributes:
        folder: Of the store.
    """

    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder)

    def replace(self, name: str, content: bytes, version: str | None) -> str:
        path = self.folder / name
        with self._explained(name):
            if version is None:
                try:
                    with path.open("xb") as stream:
                        stream.write(content)
                except FileExistsError as error:
                    raise Conflict(name) from error
            else:
                found = self.head(name)
                if found is None or found.version != version:
                    raise Conflict(name)
                temporary = temporary_path(path)
                write_synced(temporary, content)
                temporary.replace(path)
            status = path.lstat()
        return _version(status)

    def read(self, name: str) -> tuple[bytes, str] | None:
        found = self.head(name)
        if found is None:
            return None
        with self._explained(name), os.fdopen(open_regular(self.folder / name), "rb") as stream:
            return stream.read(LONGEST_LEASE), found.version

    def head(self, name: str) -> Listed | None:
        try:
            status = (self.folder / name).lstat()
        except FileNotFoundError:
            return None
        return Listed(status.st_size, _version(status))

    def age(self, name: str) -> float:
        """By the clock of the file system, which machines share."""
        probe = temporary_path(self.folder / name)
        with self._explained(name):
            write_synced(probe, b"")
            try:
                return probe.stat().st_mtime - (self.folder / name).lstat().st_mtime
            finally:
                probe.unlink()

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with self._explained(name):
                (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"{self.folder / name}: cannot be written ({error.strerror or error})") from error


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_ino}"
