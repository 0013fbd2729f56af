"""Where a build's plans and shards go once they are whole: nowhere else, or up to the store behind a mirror."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import xxhash

from iianet.errors import StoreError
from shardwriter.format.index import ShardRecord, read_index
from shardwriter.format.names import (
    CARD_FILE,
    INDEX_SUFFIX,
    STORE_FILE,
    TAR_SUFFIX,
    merged_index_name,
    plan_number,
    shard_number,
)
from shardwriter.format.plan import SHARD_COLUMNS, read_plan
from shardwriter.storage.mirror import Mirror
from shardwriter.store.catalog import read_store_record

logger = logging.getLogger(__name__)

UPLOADS = 2
"""Shards that are uploaded at a time."""
DELETIONS = 16
"""Objects that are deleted at a time: each is a journey."""
WAITING = 4
"""Shards that may wait for it: where the network is slower than the encoder, the build waits."""


class Outlet(Protocol):
    """Is told of what a build publishes, in this order."""

    def dropped(self) -> None:
        """Plans that do not count are deleted, and their numbers may be given anew."""

    def plans(self) -> None:
        """Plans and record are written, and all shards before them."""

    def shard(self, shard: str) -> None:
        """A shard is written."""

    def wait(self) -> None:
        """All shards are to be where they go."""

    def rest(self) -> None:
        """Everything is written, and what does not count any more is deleted."""


class Folder:
    """The store is the folder itself."""

    def dropped(self) -> None:
        """See `Outlet`."""

    def plans(self) -> None:
        """See `Outlet`."""

    def shard(self, shard: str) -> None:
        """See `Outlet`."""

    def wait(self) -> None:
        """See `Outlet`."""

    def rest(self) -> None:
        """See `Outlet`."""


class Upload:
    """Sends what a build writes into a mirror, and deletes the tars here.

    A shard's tar goes up before its index, plans before the record that names them, so that the store is whole for
    whoever reads it meanwhile. What goes missing on the way is sent by the next build.

    Args:
        mirror: That is built in.
        before_writing: Raises StoreError where this build may not write any more.
    """

    def __init__(self, mirror: Mirror, before_writing: Callable[[], None]) -> None:
        self.mirror = mirror
        self.before_writing = before_writing
        self.folder = mirror.folder
        self.remote = mirror.remote
        self._above = {name: self._digest(name) for name in self._written_anew() if name in mirror.files}
        self._counting = self._read_counting() if STORE_FILE in mirror.files else []
        self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        self._running: deque[Future[None]] = deque()
        self._planned = self._read_planned()

    def settle(self, before: dict[str, str]) -> None:
        """Delete shards of an earlier build here that never went up and fit no plan any more, or that others have sent.

        Args:
            before: Versions of the plans before the mirror was refreshed.
        """
        for index in sorted(self.folder.glob(f"*-*{INDEX_SUFFIX}")):
            if index.name in self.mirror.files:
                continue
            tar = index.with_suffix(TAR_SUFFIX)
            try:
                record = read_index(index, ["key"])[1][0]
            except StoreError:
                record = None
            size = tar.stat().st_size if tar.is_file() else 0
            if record is not None and self._is_planned(record, before) and size == record.tar_size:
                continue
            index.unlink()
            tar.unlink(missing_ok=True)
        for tar in self.folder.glob(f"*-*{TAR_SUFFIX}"):
            if tar.with_suffix(INDEX_SUFFIX).name in self.mirror.files:
                tar.unlink()  # another machine may have written the one up there, or deleted it

    def _is_planned(self, record: ShardRecord, before: dict[str, str]) -> bool:
        """Whether the plan that a shard was written after is there still, and the same."""
        above = self.mirror.files.get(record.plan)
        if before.get(record.plan) != (above.version if above else None):
            return False
        try:
            return record.shard in read_plan(self.folder, record.plan, SHARD_COLUMNS).shards
        except StoreError:
            return False

    def dropped(self) -> None:
        """See `Outlet`. Raises StoreError where something cannot be deleted."""
        self._delete_uncounted()

    def plans(self) -> None:
        """See `Outlet`. Raises StoreError where something cannot be uploaded, as do the others."""
        self.wait()
        for path in sorted(self.folder.glob("plan-*.parquet")):
            if plan_number(path.name) is not None and path.name not in self.mirror.files:
                self._put(path)
        self._planned = {**self._planned, **self._read_planned()}
        self._send_leftovers()
        self._put_changed(STORE_FILE)
        self._counting = self._read_counting()
        self._put_changed(CARD_FILE)
        self.mirror.save_listing()  # tells the next build, should this one die, of which plan the shards here are

    def shard(self, shard: str) -> None:
        """See `Outlet`."""
        while len(self._running) >= WAITING or (self._running and self._running[0].done()):
            self._running.popleft().result()
        parsed = shard_number(shard)
        assert parsed is not None, shard
        (record,) = read_index(self.folder / f"{shard}{INDEX_SUFFIX}", ["key"])[1]
        if record.plan in self._counting:  # the merged index would say what this shard was before
            self._delete(merged_index_name(parsed[0]))
        self._running.append(self._pool.submit(self._send, record))

    def rest(self) -> None:
        """See `Outlet`."""
        self.plans()
        for name in self._written_anew():
            self._put_changed(name)
        self._delete_uncounted()
        self.mirror.save_listing()

    def _send_leftovers(self) -> None:
        """Upload what an earlier run wrote and did not live to upload."""
        for index in sorted(self.folder.glob(f"*-*{INDEX_SUFFIX}")):
            if index.name not in self.mirror.files and shard_number(index.stem):
                logger.info("%s: uploads %s, which an earlier run wrote", self.remote.url, index.stem)
                self.shard(index.stem)
        self.wait()

    def _send(self, record: ShardRecord) -> None:
        index, tar = self.folder / f"{record.shard}{INDEX_SUFFIX}", self.folder / f"{record.shard}{TAR_SUFFIX}"
        self._delete(index.name)
        if record.tar_size:
            self._put(tar)
        else:
            self._delete(tar.name)
        self._put(index)
        tar.unlink(missing_ok=True)

    def _read_counting(self) -> list[str]:
        """The plans that count up there, since the record here is the same."""
        return list(read_store_record(self.folder).plans)

    def _delete_uncounted(self) -> None:
        """Delete what belongs to plans that were deleted here, and nothing else that lies there; the plans last, so
        that who is interrupted finds the rest again."""
        known = self._read_planned()
        lost = [name for name in self._planned if name not in known and name not in self._counting]
        gone = sorted({shard for name in lost for shard in self._planned[name]}.difference(*known.values()))
        splits = sorted({shard.rpartition("-")[0] for shard in gone})
        merged = [merged_index_name(split) for split in splits]
        for names in (
            [name for name in merged if not (self.folder / name).is_file()],
            [f"{shard}{INDEX_SUFFIX}" for shard in gone],  # before their tars: what has an index is complete
            [f"{shard}{TAR_SUFFIX}" for shard in gone],
            lost,
        ):
            with ThreadPoolExecutor(DELETIONS, thread_name_prefix="delete") as pool:
                deque(pool.map(self._delete, names), maxlen=0)
        self._planned = {name: shards for name, shards in self._planned.items() if name not in lost} | known

    def _read_planned(self) -> dict[str, set[str]]:
        """The shards of all plans that are here, and can be read: others are not ours."""
        shards: dict[str, set[str]] = {}
        for path in self.folder.glob("plan-*.parquet"):
            with suppress(StoreError):
                shards[path.name] = set(read_plan(self.folder, path.name, SHARD_COLUMNS).shards)
        return shards

    def _put_changed(self, name: str) -> None:
        """Upload what may change from build to build, if it did."""
        path = self.folder / name
        if path.is_file() and (
            (digest := self._digest(name)) != self._above.get(name) or name not in self.mirror.files
        ):
            self._put(path)
            self._above[name] = digest

    def _put(self, path: Path) -> None:
        self.mirror.files[path.name] = self.remote.put(path, path.name, self.before_writing)

    def _delete(self, name: str) -> None:
        if self.mirror.files.pop(name, None) is not None:
            self.remote.delete(name, self.before_writing)

    def wait(self) -> None:
        """See `Outlet`."""
        while self._running:
            self._running.popleft().result()

    def _written_anew(self) -> list[str]:
        """What each build writes: record, card, and merged indexes."""
        merged = [path.name for path in self.folder.glob(f"*{INDEX_SUFFIX}") if not shard_number(path.stem)]
        return [name for name in (STORE_FILE, CARD_FILE, *sorted(merged)) if (self.folder / name).is_file()]

    def _digest(self, name: str) -> str:
        return xxhash.xxh3_64_hexdigest((self.folder / name).read_bytes())

    def close(self) -> None:
        """Wait for what is being uploaded; what waits is left to the next build."""
        self._pool.shutdown(cancel_futures=True)
        self.mirror.drop_copies()


@contextmanager
def uploading(mirror: Mirror, before: dict[str, str], before_writing: Callable[[], None]) -> Iterator[Upload]:
    """Upload what a build writes into a mirror, inside the block; see `Upload` and `Upload.settle`."""
    upload = Upload(mirror, before_writing)
    upload.settle(before)
    try:
        yield upload
    finally:
        upload.close()
