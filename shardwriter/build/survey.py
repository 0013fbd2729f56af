"""What a store lacks of a corpus and of its views."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from iianet.config.schema import Config
from shardwriter.build.options import BuildOptions
from shardwriter.build.work import Work, find_work
from shardwriter.corpus.manifest import Manifest, load_manifests
from shardwriter.corpus.views import count_views, with_views
from shardwriter.format.plan import Plan
from shardwriter.store.catalog import complete_shards, is_store, read_store_record, splits_of
from shardwriter.store.generation import Generations


def survey(config: Config, store: Path, options: BuildOptions) -> dict[str, Work]:
    """What a build would encode, split by split, without writing anything (for --dry_run)."""
    record = read_store_record(store) if is_store(store) else None
    manifests = load_manifests(config, options.splits, record.data_root if record else None)
    plans = Generations.open(store).active if record and not options.overwrite else []
    wanted = planned_manifests(manifests, config.shardwriter.views, plans)
    return find_all_work(store, wanted, plans, options)


def planned_manifests(manifests: Mapping[str, Manifest], views: int, plans: Sequence[Plan]) -> dict[str, Manifest]:
    """The manifests, and those of the views that are asked for or that some plans have already."""
    return with_views(manifests, max(views, count_views(splits_of(plans))))


def all_work(manifests: Mapping[str, Manifest]) -> dict[str, Work]:
    """Everything, as if nothing were stored."""
    return {
        split: Work(manifest=manifest, new=range(len(manifest.utterances))) for split, manifest in manifests.items()
    }


def find_all_work(
    store: Path, manifests: Mapping[str, Manifest], plans: Sequence[Plan], options: BuildOptions
) -> dict[str, Work]:
    """What some plans of a store lack of manifests, split by split."""
    return {
        split: find_work(
            manifest,
            plans,
            complete_shards(store, plans, split),
            limit=options.limit,
            verify_sources=options.verify_sources,
            retry_failed=options.retry_failed,
        )
        for split, manifest in manifests.items()
    }
