"""A local folder that stands for a store behind a URL: its record, plans and indexes copied, its tars on demand."""

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import xxhash
from tqdm import tqdm

from iianet.errors import StoreError
from shardwriter.format.files import drop_dead_temporary_files, temporary_path, write_json
from shardwriter.format.names import (
    CARD_FILE,
    INDEX_SUFFIX,
    STORE_FILE,
    TAR_SUFFIX,
    is_split,
    plan_number,
    shard_number,
)
from shardwriter.storage.objects import RemoteFile, RemoteStore

logger = logging.getLogger(__name__)

MIRROR_FILE = ".mirror.json"
LISTING_FILE = ".listing.json"
LOCK_FOLDER = ".locks"
REFRESHES = 5
"""Times that a store is read anew because a build changed it meanwhile."""

COPIES = 16
"""Indexes that are copied at a time: they are small, and each is a journey."""
OPEN_DELETED = 16
"""Copies that were deleted to make room take disk as long as they are open: so many of those used last are kept."""
OPENINGS = 10
"""Times that a copy is fetched which others delete at once, since the cache is small."""


@dataclass(frozen=True)
class Mirror:
    """Holds what a remote store holds, as far as it was asked for.

    Attributes:
        folder: Of the copies.
        remote: The store itself.
        limit: Bytes of tars that are kept.
    """

    folder: Path
    remote: RemoteStore
    limit: int
    _known: dict[str, RemoteFile] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def files(self) -> dict[str, RemoteFile]:
        """The remote objects by name, as they were at the last refresh, and as uploads have changed them since."""
        if not self._known:
            path = self.folder / LISTING_FILE
            listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            self._known.update({name: RemoteFile(*facts) for name, facts in listed.items()})
        return self._known

    def refresh(self) -> None:
        """Copy record, plans and indexes as they are now.

        Raises:
            StoreError: They cannot be had.
        """
        (self.folder / LOCK_FOLDER).mkdir(parents=True, exist_ok=True)
        with self._locked("refresh"):
            drop_dead_temporary_files(self.folder)
            write_json(self.folder / MIRROR_FILE, {"url": self.remote.url, "limit": self.limit})
            for _ in range(REFRESHES):
                if self._try_refresh():
                    return
        raise StoreError(f"{self.remote.url}: changes again and again while it is opened; try again when it is built")

    def fetch(self, name: str, size: int, digest: str) -> bool:
        """Have a tar here, checked against its digest.

        Args:
            name: With suffix.
            size: Bytes that its index tells of.
            digest: That its index tells of.

        Returns:
            Whether it was downloaded now.

        Raises:
            StoreError: It cannot be had, or is not what its index says; names the object.
        """
        path = self.copy_of(name, digest)
        if _use(path, size):
            return False
        with self._locked(name):
            if _use(path, size):  # another process was quicker
                return False
            self._make_room(size)
            temporary = temporary_path(path)
            try:
                self._download(name, temporary, size, digest)
                temporary.replace(path)
            except OSError as error:
                raise StoreError(
                    f"{path}: cannot be written ({error.strerror}); make room, or name another cache folder"
                ) from error
            finally:
                temporary.unlink(missing_ok=True)
        logger.debug("%s/%s: downloaded, %d bytes", self.remote.url, name, size)
        return True

    def _download(self, name: str, path: Path, size: int, digest: str) -> None:
        try:
            self.remote.get(name, path, size=size, digest=digest)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.remote.url}/{name}: is gone; it was there when the store was opened. If it was built anew "
                "meanwhile, start again"
            ) from error

    def copy_of(self, name: str, digest: str) -> Path:
        """Where the copy of a tar lies: what was behind the URL under one name at different times never shares a file,
        so that a training that runs does not read what another one has fetched."""
        return self.folder / f"{name.removesuffix(TAR_SUFFIX)}.{digest}{TAR_SUFFIX}"

    def is_unsent(self, path: Path) -> bool:
        """Whether a tar was written here by a build, and its shard is not behind the URL yet."""
        return path.is_file() and path.with_suffix(INDEX_SUFFIX).name not in self.files

    def drop_copies(self) -> None:
        """Delete all copies of tars."""
        for path in self.folder.glob(f"*{TAR_SUFFIX}"):
            if _is_copy(path.name):
                path.unlink(missing_ok=True)

    def _try_refresh(self) -> bool:
        """Copy what changed; False where a build changed something meanwhile."""
        before = dict(self.files)
        listed = self.remote.list()  # before the record is read: what that names was published before it
        found = {name: file for name, file in listed.items() if _is_metadata(name)}
        wanted = [
            name for name, file in found.items() if before.get(name) != file or not _is_whole(self.folder / name, file)
        ]
        record = [name for name in wanted if name == STORE_FILE]
        others = [name for name in wanted if name != STORE_FILE]
        for names in (others, record):  # the record last: what is here is whole then for whoever opens it meanwhile
            if not all(self._copy_all(names, found)):
                return False
        if self.remote.list().get(STORE_FILE) != found.get(STORE_FILE):
            return False
        for name in before:  # after the record that does not name it any more
            if _is_metadata(name) and name not in found:
                (self.folder / name).unlink(missing_ok=True)
        self._known.clear()
        self._known.update(listed)
        self.save_listing()
        return True

    def _copy_all(self, names: Sequence[str], found: Mapping[str, RemoteFile]) -> Iterator[bool]:
        """Copy small objects, many at a time; False for one that a build has changed or deleted meanwhile."""

        def copy(name: str) -> bool:
            path = self.folder / name
            temporary = temporary_path(path)
            try:
                self.remote.get(name, temporary, size=found[name].size)
                temporary.replace(path)
            except (FileNotFoundError, StoreError):
                if self.remote.list().get(name) != found[name]:
                    return False
                raise
            finally:
                temporary.unlink(missing_ok=True)
            return True

        if not names:
            return
        with ThreadPoolExecutor(COPIES, thread_name_prefix="copy-index") as pool:
            copied = pool.map(copy, names)
            yield from tqdm(copied, total=len(names), desc=f"opening {self.remote.url}", delay=1.0, leave=False)

    def save_listing(self) -> None:
        """Keep `files` for other processes."""
        write_json(self.folder / LISTING_FILE, self._known)

    def _make_room(self, size: int) -> None:
        """Delete the tars unused for longest, until `size` more bytes are within the limit.

        Whoever has one of them mapped reads on: its bytes are freed when the last one closes it.
        """
        with self._locked("room"):
            tars: list[tuple[os.stat_result, str]] = []
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):  # others may delete it just now
                    tars += [(entry.stat(), entry.path)] if _is_copy(entry.name) else []
            held = sum(status.st_size for status, _ in tars)
            for status, path in sorted(tars, key=lambda tar: tar[0].st_mtime_ns):
                if held + size <= self.limit:
                    return
                Path(path).unlink(missing_ok=True)
                held -= status.st_size

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        """Only one process at a time; the system drops the lock with the process."""
        descriptor = os.open(self.folder / LOCK_FOLDER / what, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


_open: dict[Path, Mirror] = {}
"""Mirrors of this process; others find them by the file in their folder."""


def open_mirror(url: str, cache: Path, limit: int, ending: str = "") -> Mirror:
    """Copy what a URL's store holds but its tars, below a cache folder.

    Args:
        url: Of the store.
        cache: Folder of all mirrors.
        limit: Bytes of tars to keep of this store.
        ending: Tells mirrors of one store from each other.

    Raises:
        StoreError: It is no URL of a store, or cannot be had, or the cache cannot be written.
    """
    mirror = _mirror_of(url, cache, limit, ending)
    folder = mirror.folder
    try:
        mirror.refresh()
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}); name another cache folder"
        ) from error
    _open[folder] = mirror
    return mirror


def forget_written(url: str, cache: Path, ending: str) -> dict[str, RemoteFile]:
    """Let a mirror be opened with what lies behind the URL of that which builds write anew each time: one that died may
    have written others here.

    Returns:
        What lay behind the URL when the mirror was refreshed last.

    Raises:
        StoreError: It is no URL of a store.
    """
    mirror = _mirror_of(url, cache, 0, ending)
    for path in (mirror.folder / STORE_FILE, mirror.folder / CARD_FILE, *mirror.folder.glob(f"*{INDEX_SUFFIX}")):
        if shard_number(path.stem) is None:
            path.unlink(missing_ok=True)
    return dict(mirror.files)


def _mirror_of(url: str, cache: Path, limit: int, ending: str) -> Mirror:
    remote = RemoteStore.at(url)
    words = re.sub(r"[^A-Za-z0-9]+", "-", remote.url)[-60:].strip("-")
    server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    name = f"{words}-{xxhash.xxh3_64_hexdigest((remote.url + server).encode())[:8]}{ending}"
    return Mirror(Path(os.path.abspath(cache)) / name, remote, limit)


def mirror_at(folder: Path) -> Mirror | None:
    """The mirror that lies in a folder; None where it is a store's own."""
    if folder not in _open and (folder / MIRROR_FILE).is_file():
        facts = json.loads((folder / MIRROR_FILE).read_text(encoding="utf-8"))
        _open[folder] = Mirror(folder, RemoteStore(facts["url"]), facts["limit"])
    return _open.get(folder)


def open_tar_file(path: Path, size: int, digest: str) -> tuple[int, bool]:
    """Open a shard's tar for reading; in a mirror it is fetched, see `Mirror.fetch`.

    Returns:
        Its descriptor, and whether it was downloaded and checked just now.

    Raises:
        OSError: It cannot be opened.
        StoreError: It cannot be fetched.
    """
    mirror = mirror_at(path.parent)
    if mirror is None or mirror.is_unsent(path):
        return os.open(path, os.O_RDONLY), False
    for _ in range(OPENINGS):
        fresh = mirror.fetch(path.name, size, digest)
        try:
            return os.open(mirror.copy_of(path.name, digest), os.O_RDONLY), fresh
        except FileNotFoundError:  # another process has made room meanwhile
            continue
    raise StoreError(f"{path}: was deleted again and again to make room; set datamodule.data_config.cache_gb higher")


def tar_sizes(store: Path) -> Mapping[str, int]:
    """Bytes of the tars that lie behind a mirror, by name; nothing of a folder that is none."""
    mirror = mirror_at(store)
    if mirror is None:
        return {}
    files = list(mirror.files.items())  # at once, for uploads change it
    return {name: file.size for name, file in files if name.endswith(TAR_SUFFIX)}


def names_behind(store: Path) -> list[str]:
    """All that lies behind a mirror; nothing of a folder that is none."""
    mirror = mirror_at(store)
    return list(mirror.files) if mirror else []


def has_copy(path: Path, digest: str) -> bool:
    """Whether a mirror has a tar here; it may have made room for others. True of a folder that is none."""
    mirror = mirror_at(path.parent)
    return mirror is None or mirror.is_unsent(path) or mirror.copy_of(path.name, digest).is_file()


def drop_copy(path: Path, digest: str) -> bool:
    """Delete the copy of a tar, so that it is fetched anew. Returns False where it is a store's own, which stays."""
    mirror = mirror_at(path.parent)
    if mirror is not None:
        mirror.copy_of(path.name, digest).unlink(missing_ok=True)
    return mirror is not None


def drop_copies(store: Path) -> None:
    """Delete the tars that a mirror holds, so that they are read anew; of a folder that is none, nothing."""
    mirror = mirror_at(store)
    if mirror is not None:
        mirror.drop_copies()


def store_name(store: Path) -> str:
    """What a user calls a store: its URL, or its folder."""
    mirror = mirror_at(store)
    return mirror.remote.url if mirror else str(store)


def file_name(path: Path) -> str:
    """What a user calls a file of a store: its URL, or its path."""
    mirror = mirror_at(path.parent)
    return f"{mirror.remote.url}/{path.name}" if mirror else str(path)


def _is_metadata(name: str) -> bool:
    return name in (STORE_FILE, CARD_FILE) or plan_number(name) is not None or _is_index(name)


def _is_index(name: str) -> bool:
    """Whether a name is that of an index of ours: others may keep large files of this suffix there."""
    stem = name.removesuffix(INDEX_SUFFIX)
    return name.endswith(INDEX_SUFFIX) and (shard_number(stem) is not None or is_split(stem))


def _is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether a copy is there; one that a power cut left short is not."""
    return path.is_file() and path.stat().st_size == file.size


def _is_copy(name: str) -> bool:
    """Whether a file is a copy of a tar, and none that a build has written and not uploaded yet."""
    stem, _, digest = name.removesuffix(TAR_SUFFIX).rpartition(".")
    return name.endswith(TAR_SUFFIX) and bool(digest) and shard_number(stem) is not None


def _use(path: Path, size: int) -> bool:
    """Whether a file is there whole; it counts as used now."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except OSError:
        return False
    return True
