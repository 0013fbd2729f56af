"""Entries of a split, copied out of its shards into new ones."""

from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from iianet.errors import StoreError
from shardwriter.format.digest import digest_of
from shardwriter.format.index import ShardRecord
from shardwriter.format.members import open_tar, read_member
from shardwriter.format.names import TAR_SUFFIX
from shardwriter.format.shard_writer import ShardWriter
from shardwriter.inspect.contents import entries_of
from shardwriter.storage.mirror import OPEN_DELETED, file_name, has_copy, mirror_at
from shardwriter.store.catalog import SplitCatalog

OPEN_TARS = 64
"""Tars kept open at a time; entries in hash order come from all of them by turns."""


class CopiedSplit:
    """What is copied from.

    Args:
        store: Its folder.
        split: Name of the split.
        held: Its complete shards.
    """

    def __init__(self, store: Path, split: str, held: SplitCatalog) -> None:
        self.store = store
        self.split = split
        self.held = held
        self._digests = {record.shard: record.tar_digest for record in held.shards}
        self._open: OrderedDict[str, tuple[ExitStack, IO[bytes]]] = OrderedDict()
        self._checked: set[str] = set()

    def copy(self, key: str, writer: ShardWriter) -> None:
        """Append the newest entry of a key to a shard, byte for byte; a failure as a failure.

        Raises:
            StoreError: It lies in a shard that is damaged.
        """
        row = self.held.newest[key]
        rows = self.held.entries.slice(row, 1)
        (values,) = rows.to_pylist()
        if values["error"] is not None:
            writer.copy(values, {})
            return
        record = self.held.shards[int(self.held.shard_of_entry[row])]
        tar = self._tar(record)
        (entry,) = entries_of(self.split, record.shard, rows)
        writer.copy(values, {member: read_member(tar, entry, member) for member in entry.members})

    def _tar(self, record: ShardRecord) -> IO[bytes]:
        if record.shard not in self._open:
            if len(self._open) == OPEN_TARS:
                self._open.popitem(last=False)[1][0].close()
            self._close_deleted()
            stack = ExitStack()
            self._open[record.shard] = stack, stack.enter_context(open_tar(self.store, record.shard))
            self._check(record)
        self._open.move_to_end(record.shard)
        return self._open[record.shard][1]

    def _close_deleted(self) -> None:
        """Close copies that made room for others, for they take disk as long as they are open; not those used last."""
        if mirror_at(self.store) is None:
            return
        for shard in list(self._open)[:-OPEN_DELETED]:
            if not has_copy(self.store / f"{shard}{TAR_SUFFIX}", self._digests[shard]):
                self._open.pop(shard)[0].close()

    def _check(self, record: ShardRecord) -> None:
        """Compare a tar with its digest, once: damage must not be copied."""
        if record.shard in self._checked:
            return
        digest, size = digest_of(self._open[record.shard][1])
        if (digest, size) != (record.tar_digest, record.tar_size):
            raise StoreError(
                f"{file_name(self.store / f'{record.shard}{TAR_SUFFIX}')}: has {size:,} bytes and the digest {digest}, "
                f"its index says {record.tar_size:,} and {record.tar_digest}: it is damaged, and nothing was copied "
                "from it. Delete it and run build-shards, which writes it again, then compact"
            )
        self._checked.add(record.shard)

    def close(self) -> None:
        """Close all tars."""
        while self._open:
            self._open.popitem()[1][0].close()
