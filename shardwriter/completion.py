"""How far the plans of a store have come, and what a build leaves when it ends: merged indexes, card, failures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from shardwriter.build_report import Failure
from shardwriter.card import write_card
from shardwriter.catalog import SplitCatalog, complete_shards, splits_of
from shardwriter.format import INDEX_SUFFIX
from shardwriter.index import merge_indexes, read_index
from shardwriter.manifest import Manifest
from shardwriter.plan import Plan, ShardTask
from shardwriter.views import count_views, with_views


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
    counts: dict[str, int] = {}
    failed: dict[str, list[Failure]] = {}
    known = with_views(manifests, count_views(splits_of(plans)))
    for split in splits_of(plans):
        catalog = complete_shards(store, plans, split)
        records = list(catalog.shards)
        if records:
            merge_indexes(store, split, [read_index(store / f"{r.shard}{INDEX_SUFFIX}")[0] for r in records], records)
        counts[split] = _count_stored(catalog)
        if split in known:
            failed[split] = _failures(known[split], catalog)
    write_card(store, counts)
    return failed


def _count_stored(catalog: SplitCatalog) -> int:
    return len(catalog.newest) - len(catalog.failures)


def _failures(manifest: Manifest, catalog: SplitCatalog) -> list[Failure]:
    return [
        Failure(manifest.split, utterance.key, utterance.mouth, catalog.failures[utterance.key])
        for utterance in manifest.utterances
        if utterance.key in catalog.failures
    ]
