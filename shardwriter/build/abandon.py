"""Give up an --overwrite or a --compact that was begun (build-shards --abandon)."""

from pathlib import Path

from shardwriter.storage.lock import build_lock
from shardwriter.storage.outlet import Outlet
from shardwriter.store.catalog import read_store_record
from shardwriter.store.completion import finish
from shardwriter.store.generation import Generations


def abandon(store: Path, outlet: Outlet, keep_replaced_days: float | None) -> list[str]:
    """Delete what was written to take the place of a store, which serves on.

    Args:
        store: Its folder.
        outlet: Takes what is written to where the store is.
        keep_replaced_days: See the config's key of this name.

    Returns:
        The plans that were given up.

    Raises:
        StoreError: It is no store, or a build is at it.
    """
    read_store_record(store)  # raises, before a folder is made for what is no store
    with build_lock(store):
        generations = Generations.open(store, keep_replaced_days)
        generations.clean()
        names = [plan.name for plan in (generations.replacement, generations.compaction) if plan]
        generations.abandon()
        finish(store, generations.active, {})
        outlet.rest()
    return names
