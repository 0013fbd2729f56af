"""Shards that an interrupted call left, whose plan was never published; tars of others are no leftovers."""

from pathlib import Path

from iianet.errors import StoreError
from shardwriter.format.index import read_index
from shardwriter.format.names import INDEX_SUFFIX, TAR_SUFFIX, shard_number


def drop_leftovers(store: Path, pattern: str = "*") -> None:
    """Delete the shards of some name that no plan has; the lock must be held, and the caller know that none has them.

    Raises:
        StoreError: One has no index of ours, so it may be another's; nothing is deleted then.
    """
    found = sorted(path for path in store.glob(f"{pattern}{TAR_SUFFIX}") if shard_number(path.stem))
    indexes = [path.with_suffix(INDEX_SUFFIX) for path in found]
    for tar, index in zip(found, indexes, strict=True):
        try:
            read_index(index)
        except StoreError as error:
            raise StoreError(
                f"{tar}: is there already, and no index of ours says whose it is. Choose another folder, or move it "
                "away; inspect-shards --reindex makes a store of others' tars"
            ) from error
    for tar, index in zip(found, indexes, strict=True):
        index.unlink()
        tar.unlink()
