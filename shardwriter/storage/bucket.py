"""A store behind a URL, in a bucket: small files are cached by their version, tars are downloaded on demand."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import xxhash
from tqdm import tqdm

from iianet.errors import StoreError
from iianet.regular_file import open_regular
from shardwriter.format.files import delete_dead_temporary_files, temporary_path
from shardwriter.format.index import decode_index
from shardwriter.format.names import INDEX_SUFFIX, TAR_SUFFIX, TEMPORARY_PREFIX, index_name, parse_shard
from shardwriter.storage.lease import Lease, held_lease
from shardwriter.storage.lock import NoLocks, explained, release_lock, wait_for_lock
from shardwriter.storage.objects import Conflict, Objects, endpoint
from shardwriter.storage.storage import Listed, OpenTar, Storage, checked_name

logger = logging.getLogger(__name__)

DOWNLOADS = 16
"""Small files that are downloaded at a time: each takes a round trip."""
LOCKS = 256
"""Files whose locks let each tar be downloaded by one process at a time; tars share them, so none is ever deleted."""
DOWNLOAD_SECONDS = 86_400.0
"""Longest wait for another process that downloads a tar."""
CACHE_CURE = "; make room, or name another cache folder (datamodule.data_config.cache_dir)"
STAGING_FOLDER, SMALL_FOLDER, LOCK_FOLDER = "staging", "small", "locks"


class Bucket(Storage):
    """See `Storage`.

    Args:
        objects: The objects of the store.
        cache: Folder below which this machine keeps copies of all stores.
        limit: Bytes of this store's tars to keep.
    """

    num_downloads = 4
    num_uploads = 2
    keep_replaced_days = 7.0
    """Nobody can see who reads a bucket: longer than most trainings."""

    def __init__(self, objects: Objects, cache: Path, limit: int) -> None:
        words = re.sub(r"[^A-Za-z0-9]+", "-", objects.url)[-60:].strip("-")
        self.objects = objects
        self.limit = limit
        digest = xxhash.xxh3_64_hexdigest((objects.url + endpoint()).encode())
        self.folder = Path(os.path.abspath(cache)) / f"{words}-{digest[:8]}"
        self._known: dict[str, Listed] = {}
        self._lease: Lease | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lease": None}  # the process that holds it writes; others may publish shards

    @property
    def name(self) -> str:
        return self.objects.url

    @property
    def staging(self) -> Path:
        return self.folder / STAGING_FOLDER

    def where(self, name: str) -> str:
        return f"{self.objects.url}/{name}"

    def files(self) -> Mapping[str, Listed]:
        self._known = {name: facts for name, facts in self.objects.list().items() if not name.startswith(".")}
        self._delete_unlisted()
        return dict(self._known)

    def version(self, name: str) -> str | None:
        facts = self.objects.head(name)
        return facts.version if facts else None

    def open(self, name: str) -> IO[bytes]:
        facts = self._known.get(name) or self.objects.head(name)
        if facts is None:
            raise FileNotFoundError(self.where(name))
        self._known[name] = facts
        descriptor = _open_whole(self._cached(name, facts.version), facts.size)
        return self._download_small(name) if descriptor is None else os.fdopen(descriptor, "rb")

    def prefetch(self, names: Iterable[str]) -> None:
        wanted = [
            name
            for name in names
            if name in self._known and not self._cached(name, self._known[name].version).is_file()
        ]
        if not wanted:
            return
        with ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download") as pool:
            done = pool.map(self._open_and_close, wanted)
            for _ in tqdm(done, total=len(wanted), desc=f"opening {self.name}", delay=1.0, leave=False):
                pass

    def open_tar(self, name: str, size: int, digest: str) -> OpenTar:
        path = self._copy(name, digest)
        descriptor = _open_whole(path, size)
        if descriptor is not None:
            return OpenTar(descriptor, is_checked=False)
        self._make_folders()
        with explained(path, CACHE_CURE), self._locked(name):
            descriptor = _open_whole(path, size)  # another process was quicker
            if descriptor is not None:
                return OpenTar(descriptor, is_checked=False)
            return OpenTar(self._download_tar(name, path, size, digest), is_checked=True)

    def is_kept(self, name: str, digest: str) -> bool:
        return self._copy(name, digest).is_file()

    def forget(self, name: str, digest: str) -> bool:
        self._copy(name, digest).unlink(missing_ok=True)
        return True

    def publish(self, files: Iterable[tuple[Path, str]]) -> None:
        staged = []
        for temporary, name in files:
            path = self.staging / name
            if temporary != path:
                temporary.replace(path)
            staged.append(path)
        for path in staged:
            self.check_lock()
            self._note(path.name, path.stat().st_size, self.objects.write(path.name, path))
        for path in reversed(staged):  # the index first: what has one here is whole
            path.unlink(missing_ok=True)

    def publish_staged(self, is_wanted: Callable[[str], bool]) -> list[str]:
        published = []
        for index in sorted(self.staging.glob(f"*-*{INDEX_SUFFIX}")):
            shard, tar = index.stem, index.with_suffix(TAR_SUFFIX)
            if parse_shard(shard) and index_name(shard) not in self._known and is_wanted(shard):
                size = _tar_size(index)
                if size == 0 or (tar.is_file() and tar.stat().st_size == size):
                    self.publish([*([(tar, tar.name)] if size else []), (index, index.name)])
                    published.append(shard)
        for leftover in self.staging.iterdir():
            if not leftover.is_dir():  # the logs of builds
                leftover.unlink(missing_ok=True)
        return published

    def write(self, name: str, content: bytes) -> None:
        self.check_lock()
        self._note(name, len(content), self.objects.write(name, content))

    def delete(self, names: Iterable[str]) -> None:
        self.check_lock()
        chosen = [name for name in names if name in self._known]
        self.objects.delete(chosen)
        for name in chosen:
            del self._known[name]

    def commit(self, name: str, content: bytes, version: str | None) -> str:
        self.check_lock()
        try:
            new = self.objects.replace(name, content, version)
        except Conflict as error:
            raise StoreError(
                f"{self.where(name)}: another build has changed the store since this one opened it; nothing was "
                "overwritten. Run the command again to resume"
            ) from error
        self._note(name, len(content), new)
        return new

    @contextmanager
    def write_lock(self, *, patient: bool = False) -> Iterator[None]:  # noqa: ARG002 (a lease has nobody to wait for)
        with held_lease(self.objects) as lease:
            self._make_folders()
            self._lease = lease
            try:
                yield
            finally:
                self._lease = None

    def check_lock(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _note(self, name: str, size: int, version: str) -> None:
        self._known[name] = Listed(size, version)

    def _cached(self, name: str, version: str) -> Path:
        return (
            self.folder / SMALL_FOLDER / f"{checked_name(name, self.name)}.{xxhash.xxh3_64_hexdigest(version.encode())}"
        )

    def _copy(self, name: str, digest: str) -> Path:
        """Where the copy of a tar lies: other content never shares its file."""
        return self.folder / checked_name(f"{name.removesuffix(TAR_SUFFIX)}.{digest}{TAR_SUFFIX}", self.name)

    def _open_and_close(self, name: str) -> None:
        with suppress(FileNotFoundError):  # deleted just now; whoever opens it says so
            self.open(name).close()

    def _download_small(self, name: str) -> IO[bytes]:
        """Download a small file as it is now, which may be newer than it was when listed, and open it."""
        folder = self.folder / SMALL_FOLDER
        with explained(folder / name, CACHE_CURE):
            folder.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(folder / name)
            try:
                facts = self._known[name] = self.objects.download(name, temporary)
                stream = temporary.open("rb")  # first, since others may delete the copy at once
                temporary.replace(self._cached(name, facts.version))
                return stream
            finally:
                temporary.unlink(missing_ok=True)

    def _delete_unlisted(self) -> None:
        """Delete the copies of small files that were deleted or written again since they were downloaded."""
        listed = {self._cached(name, facts.version).name for name, facts in self._known.items()}
        folder = self.folder / SMALL_FOLDER
        with suppress(OSError):  # no copies yet, or those of another user
            delete_dead_temporary_files(folder)
            for copy in folder.iterdir():
                if copy.name not in listed and not copy.name.startswith(TEMPORARY_PREFIX):
                    copy.unlink(missing_ok=True)

    def _download_tar(self, name: str, path: Path, size: int, digest: str) -> int:
        """Download a tar and check it. Returns its descriptor."""
        self._make_room(size)
        temporary = temporary_path(path)
        try:
            self.objects.download(name, temporary, size=size, digest=digest)
            descriptor = os.open(temporary, os.O_RDONLY)  # first, since others may delete the copy to make room
            temporary.replace(path)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.where(name)}: is gone; it was there when the store was opened. If it was replaced "
                "meanwhile, start again"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        logger.debug("%s: downloaded, %d bytes", self.where(name), size)
        return descriptor

    def _make_room(self, size: int) -> None:
        """Delete the tars unused for longest, until `size` more bytes are within the limit.

        Whoever has one of them mapped reads on: its bytes are freed when the last one closes it.
        """
        tars: list[tuple[os.stat_result, str]] = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # others may delete it just now
                tars += [(entry.stat(), entry.path)] if entry.name.endswith(TAR_SUFFIX) else []
        held = sum(status.st_size for status, _ in tars)
        for status, path in sorted(tars, key=lambda tar: tar[0].st_mtime_ns):
            if held + size <= self.limit:
                return
            Path(path).unlink(missing_ok=True)
            held -= status.st_size

    def _make_folders(self) -> None:
        with explained(self.folder, CACHE_CURE):
            for name in (STAGING_FOLDER, LOCK_FOLDER):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            delete_dead_temporary_files(self.folder)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Only one process at a time; the system drops the lock with the process."""
        number = xxhash.xxh3_64_intdigest(name.encode()) % LOCKS
        path = self.folder / LOCK_FOLDER / str(number)
        with os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b") as stream:
            with suppress(NoLocks):  # then more than one may download it, and each publishes it whole
                wait_for_lock(stream, self.where(name), DOWNLOAD_SECONDS, lambda: "another process that downloads")
            try:
                yield
            finally:
                release_lock(stream)  # a process that was forked meanwhile has it open, too


def _tar_size(index: Path) -> int | None:
    """Bytes of the tar that a staged index belongs to; None where it cannot be read."""
    try:
        with index.open("rb") as stream:
            return decode_index(stream, str(index), ["key"])[1][0].tar_size
    except (StoreError, IndexError):
        return None


def _open_whole(path: Path, size: int) -> int | None:
    """Open a copy that is used now; None where it is not here whole, as after a power cut."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        return None
    with suppress(OSError):  # another user's, or on a read-only file system
        os.utime(descriptor)
    return descriptor
