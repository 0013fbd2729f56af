"""Make a store of tars that have no index: in place where they are a store's own, else in new shards."""

import logging
from pathlib import Path

from iianet.errors import ConfigError, StoreError
from shardwriter.format.names import TAR_SUFFIX, TEMPORARY_PREFIX
from shardwriter.inspect.adopt import Misfit, adopt
from shardwriter.inspect.contents import Contents
from shardwriter.inspect.located import locate
from shardwriter.inspect.rewrite import rewrite
from shardwriter.storage.locate import is_remote, local_folder
from shardwriter.storage.lock import build_lock
from shardwriter.storage.tar_urls import expand, refuse_fetched
from shardwriter.store.catalog import Catalog, is_store
from shardwriter.store.completion import finish
from shardwriter.store.leftovers import drop_leftovers
from shardwriter.store.recorded import Recorded, read_recorded

logger = logging.getLogger(__name__)


def reindex(given: str, into: str | None = None, data_root: str | None = None) -> Path:
    """Make a store.

    Args:
        given: Folder with tars, or a path or brace pattern of some.
        into: Folder for new shards; by default the folder's own tars are indexed where they lie.
        data_root: Where the paths in the samples' json start; by default as the folder's store.json says, if there.

    Returns:
        Folder of the store.

    Raises:
        StoreError: There are no tars, they cannot be read, or cannot be indexed where they lie.
    """
    source = local_folder(given) if Path(given).is_dir() or is_remote(given) else None
    tars = _tars(given, source)
    if into is None and source is None:
        raise ConfigError(
            f"--reindex: {given} is no folder, so give --into DIR for new shards, or the folder, to index all of its "
            "tars where they lie"
        )
    store = local_folder(into) if into is not None else source
    assert store is not None
    _refuse(store, tars, into is None)
    recorded = _recorded(tars)
    with build_lock(store):
        located = locate(tars)
        if into is not None:
            drop_leftovers(store)
            rewrite(store, located, recorded, data_root)
        else:
            try:
                adopt(store, located, recorded, data_root)
            except Misfit as error:
                raise StoreError(f"{error}. Give --into DIR, to write the samples into new shards there") from error
        _finish(store)
    return store


def _recorded(tars: list[Path]) -> Recorded:
    """What the folders of the tars say of them. Raises StoreError where they say different things."""
    told = {folder: read_recorded(folder) for folder in sorted({tar.parent for tar in tars})}
    (first, recorded), *others = told.items()
    for folder, other in others:
        if other.identity != recorded.identity:
            raise StoreError(
                f"{first} and {folder}: their embeddings were not made alike, or only one says how; make a store of "
                "each"
            )
    return recorded


def _tars(given: str, folder: Path | None) -> list[Path]:
    if folder is None:
        urls = expand(given)
        refuse_fetched(urls, "--reindex reads local tars; copy them to this machine")
        return [Path(url) for url in urls]
    tars = sorted(path for path in folder.glob(f"*{TAR_SUFFIX}") if not path.name.startswith(TEMPORARY_PREFIX))
    if not tars:
        raise StoreError(f"{folder}: holds no tars; give the folder that does")
    return tars


def _refuse(store: Path, tars: list[Path], in_place: bool) -> None:
    """Raise StoreError where there is nothing to do, or something that would be overwritten."""
    if not in_place:
        if is_store(store) or any(store.glob("plan-*.parquet")):
            raise StoreError(f"--into {store}: holds a store already; choose another folder")
        return
    if _is_whole(store, tars):
        raise StoreError(f"{store}: is a store, and every tar in it has its index; there is nothing to do")


def _is_whole(store: Path, tars: list[Path]) -> bool:
    try:
        contents = Contents.open(store)
    except StoreError:
        return False
    indexed = {record.shard for held in contents.splits.values() for record in held.shards}
    begun_or_replaced = {shard for plan in contents.generations.uncounted for shard in plan.shards}
    return not contents.problems and {tar.stem for tar in tars} <= indexed | begun_or_replaced


def _finish(store: Path) -> None:
    """Merge the indexes, write the card, and say what there is."""
    catalog = Catalog.open(store)
    finish(store, catalog.plans, {})
    named = ", ".join(f"{split} {len(catalog.split(split).newest):,}" for split in catalog.splits)
    logger.info("%s: is a store now, with these utterances: %s", store, named)
