"""How far the plans of a store have come, and what a build leaves when it ends: merged indexes, card, failures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from shardwriter.build.report import Failure
from shardwriter.corpus.manifest import Manifest
from shardwriter.corpus.views import count_views, with_views
from shardwriter.format.index import merge_indexes, read_index
from shardwriter.format.names import INDEX_SUFFIX, TAR_SUFFIX, shard_number
from shardwriter.format.plan import Plan, ShardTask
from shardwriter.storage.mirror import names_behind
from shardwriter.store.card import write_card
from shardwriter.store.catalog import SplitCatalog, complete_shards, splits_of


def unfinished_tasks(
    store: Path, plans: Sequence[Plan], splits: Sequence[str], number: int = 0, of: int = 1
) -> list[ShardTask]:
    """Tasks without a complete shard. A part is cut from all tasks, so that it stays what it is while others run."""
    complete = {record.shard for split in splits for record in complete_shards(store, plans, split).shards}
    tasks = [task for plan in plans for task in plan.tasks(splits)]
    return [task for task in tasks[number::of] if task.shard not in complete]


def holds_anything(store: Path, plan: Plan) -> bool:
    """Whether something of a plan is stored."""
    return any(_count_stored(complete_shards(store, [plan], split)) for split in splits_of([plan]))


def finish(store: Path, plans: Sequence[Plan], manifests: Mapping[str, Manifest]) -> dict[str, list[Failure]]:
    """Merge the indexes and write the card.

    Returns:
        Per split of `manifests`, and per view of one, what is not stored.
    """
    held: dict[str, SplitCatalog] = {}
    failed: dict[str, list[Failure]] = {}
    known = with_views(manifests, count_views(splits_of(plans)))
    for split in splits_of(plans):
        catalog = complete_shards(store, plans, split)
        records = list(catalog.shards)
        if records:
            merge_indexes(store, split, [read_index(store / f"{r.shard}{INDEX_SUFFIX}")[0] for r in records], records)
        held[split] = catalog
        if split in known:
            failed[split] = _failures(known[split], catalog)
    _write_card(store, held, alone=True)
    return failed


def announce(store: Path, plans: Sequence[Plan]) -> None:
    """Let the card name the tars that count, before others are written beside them: its readers know no index."""
    _write_card(store, {split: complete_shards(store, plans, split) for split in splits_of(plans)}, alone=False)


def _write_card(store: Path, held: Mapping[str, SplitCatalog], *, alone: bool) -> None:
    """Write the card: with patterns where only what counts is there, and will be."""
    counting = {
        split: [f"{record.shard}{TAR_SUFFIX}" for record in catalog.shards if record.tar_size]
        for split, catalog in held.items()
    }
    mixed = {split: names for split, names in counting.items() if not alone or _tars(store, split) - set(names)}
    write_card(store, {split: _count_stored(catalog) for split, catalog in held.items()}, mixed)


def _tars(store: Path, split: str) -> set[str]:
    """Tars of a split that lie in a store, whether they count or not."""
    names = set(names_behind(store))
    behind = {name for name in names if name.startswith(f"{split}-") and name.endswith(TAR_SUFFIX)}
    for name in sorted(behind):  # those that were dropped here are deleted next
        index = f"{name.removesuffix(TAR_SUFFIX)}{INDEX_SUFFIX}"
        if index in names and not (store / index).is_file():
            behind.remove(name)
    return behind | {path.name for path in store.glob(f"{split}-*{TAR_SUFFIX}") if shard_number(path.stem)}


def _count_stored(catalog: SplitCatalog) -> int:
    return len(catalog.newest) - len(catalog.failures)


def _failures(manifest: Manifest, catalog: SplitCatalog) -> list[Failure]:
    return [
        Failure(manifest.split, utterance.key, utterance.mouth, catalog.failures[utterance.key])
        for utterance in manifest.utterances
        if utterance.key in catalog.failures
    ]
