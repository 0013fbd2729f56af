"""Build a store: make or continue it until every utterance of the manifest is stored or has a reason why not."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from configs.errors import ConfigError, StoreError
from configs.schema import Config
from iianet.encoder_source import EncoderSource
from iianet.mouth import FPS
from iianet.video_encoder import VideoEncoder
from shardwriter.build_report import Bar, BuildReport, Failure
from shardwriter.card import write_card
from shardwriter.catalog import (
    Catalog,
    complete_shards,
    is_store,
    read_store_record,
    splits_of,
    write_store_record,
)
from shardwriter.format import INDEX_SUFFIX, SPLITS, Identity, StoreRecord, parse_view_split
from shardwriter.generation import Generations, Work, find_work
from shardwriter.identity import identity_of, imported_identity, refuse_other_identity
from shardwriter.import_embeddings import refuse_views
from shardwriter.index import merge_indexes, read_index
from shardwriter.lock import build_lock
from shardwriter.manifest import Manifest, load_manifests
from shardwriter.plan import Plan, ShardTask
from shardwriter.tasks import Encoding, run_tasks
from shardwriter.views import count_views, with_views

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What build-shards is asked for, beside the config.

    Attributes:
        splits: To build; the training split with the views that the config asks for and those that the store has.
        device: That encodes.
        dtype: Of the embeddings; None is the store's, where it exists, else the config's.
        audio: `path` or `embed`; None likewise.
        overwrite: Build everything anew; the old store serves until the new one is complete.
        limit: Take only the first so many utterances of each split, in hash order.
        verify_sources: Digest every npz, even where size and time are as recorded.
        retry_failed: Try those again that failed and have not changed since.
        import_embeddings: Take the embeddings that an earlier tool left beside the npz, instead of encoding.
    """

    splits: Sequence[str] = SPLITS
    device: torch.device
    dtype: str | None = None
    audio: str | None = None
    overwrite: bool = False
    limit: int | None = None
    verify_sources: bool = False
    retry_failed: bool = False
    import_embeddings: bool = False


def survey(config: Config, store: Path, options: BuildOptions) -> tuple[dict[str, Manifest], dict[str, Work]]:
    """What a build would encode, without writing anything (for --dry_run)."""
    record = read_store_record(store) if is_store(store) else None
    manifests = _manifests(config, store, options, record)
    if options.overwrite:
        return manifests, {split: _everything(item) for split, item in manifests.items()}
    plans = Generations.open(store).active if record else []
    return manifests, _find_work(store, manifests, plans, options)


def build(config: Config, store: Path, options: BuildOptions) -> BuildReport:
    """Make or continue a store.

    Raises:
        FeatureStoreError: It could not start: manifest, weights, identity, or another build on this store. Or it could
            not go on: the store cannot be written.
    """
    return prepare(config, store, options).run()


def prepare(config: Config, store: Path, options: BuildOptions) -> "Build":
    """Load what a build needs, without writing anything. Raises FeatureStoreError where something is wrong."""
    record = read_store_record(store) if is_store(store) else None
    manifests = _manifests(config, store, options, record)
    kept = record.identity if record and not options.overwrite else config.shardwriter
    dtype, audio = options.dtype or kept.dtype, options.audio or kept.audio
    encoder: VideoEncoder | None = None
    if options.import_embeddings:
        refuse_views(manifests)
        identity = imported_identity(dtype, audio)
    else:
        source = EncoderSource.from_config(config)
        encoder = source.load(options.device)
        identity = identity_of(source, encoder.fingerprint(), dtype, audio)
    encoding = Encoding(
        encoder=encoder,
        device=options.device,
        dtype=identity.dtype,
        fps=FPS,
        batch_size=config.shardwriter.batch_size,
        num_workers=config.shardwriter.num_workers,
        embed_audio=identity.audio == "embed",
    )
    if record and not options.overwrite and not _begun_with(store, identity):
        refuse_other_identity(store, record.identity, identity)
    return Build(config, store, options, manifests, identity, encoding)


def begin(config: Config, store: Path, options: BuildOptions) -> None:
    """Make a store that holds nothing yet. Raises FeatureStoreError where a build could not start."""
    made = prepare(config, store, options)
    with build_lock(store):
        if not is_store(store):
            write_store_record(store, StoreRecord(identity=made.identity, data_root=str(made.data_root), plans=()))


def _manifests(config: Config, store: Path, options: BuildOptions, record: StoreRecord | None) -> dict[str, Manifest]:
    """Of the splits and of their views: those that are asked for, and those that the store has already."""
    manifests = load_manifests(config, options.splits, record.data_root if record else None)
    views = config.shardwriter.views
    if record and not options.overwrite:
        views = max(views, count_views(Catalog.open(store).splits))
    return with_views(manifests, views)


def _begun_with(store: Path, identity: Identity) -> bool:
    """Whether an --overwrite with this identity waits to be continued."""
    waiting = Generations.open(store).replacement
    return waiting is not None and waiting.identity == identity


@dataclass
class Build:
    """A build that can start."""

    config: Config
    store: Path
    options: BuildOptions
    manifests: Mapping[str, Manifest]
    identity: Identity
    encoding: Encoding
    report: BuildReport = field(default_factory=BuildReport)
    generations: Generations = field(init=False)

    @property
    def data_root(self) -> Path:
        """Folder that the paths of the manifests are relative to."""
        return next(iter(self.manifests.values())).data_root

    def run(self) -> BuildReport:
        """Encode and store. Raises FeatureStoreError where another build is at it, or the store cannot be written."""
        with build_lock(self.store):
            self.generations = Generations.open(self.store)
            self.generations.clean()
            if self.is_replacing():
                self.replace()
            waiting = self.generations.replacement
            if waiting is None or waiting.identity != self.identity:
                self.extend()
            self.finish()
        return self.report

    def is_replacing(self) -> bool:
        """Whether an --overwrite is asked for, or one with this identity was begun."""
        waiting = self.generations.replacement
        if waiting and waiting.identity == self.identity:
            logger.info("%s: continues the --overwrite that was begun (%s)", self.store, waiting.name)
            return True
        if self.options.overwrite and self.generations.record is not None:
            return True
        if waiting:
            logger.warning(
                "%s: an --overwrite with another identity was begun and waits (%s)", self.store, waiting.name
            )
        return False

    def replace(self) -> None:
        """Run the plan that replaces everything, and make it count once it is complete.

        Raises:
            StoreError: Nothing of it could be stored; the old store stays.
        """
        generations = self.generations
        begins_now = generations.replacement is None or generations.replacement.identity != self.identity
        if begins_now:
            _refuse_partial_overwrite(self.store, generations, self.options)
            if generations.replacement:
                generations.abandon()
            generations.replace(self.manifests, self.identity, self.config.shardwriter.utterances_per_shard)
        replacement = generations.replacement
        assert replacement is not None
        if begins_now:
            work = {split: _everything(manifest) for split, manifest in self.manifests.items()}
        else:  # what is new or changed comes after it
            found = _find_work(self.store, self.manifests, [replacement], self.options)
            work = {split: replace(item, new=(), changed=(), retried=()) for split, item in found.items()}
        self.encode([replacement], work)
        splits = splits_of([replacement])
        if _unfinished(self.store, [replacement], splits):
            return
        if not any(_stored(self.store, [replacement], split) for split in splits):
            generations.abandon()
            raise StoreError(
                f"{self.store}: --overwrite could store none of {len(replacement.table)} utterances, so the old store "
                f"stays. Mend data_root ({self.data_root}) or the npz; the log names each."
            )
        generations.switch(self.data_root)
        if begins_now:  # all of it was just read
            self.options = replace(self.options, verify_sources=False, retry_failed=False)

    def extend(self) -> None:
        """Plan what is new or changed, if anything, and run the unfinished tasks of the plans that count."""
        self.encode(self.generations.active, self.publish())

    def publish(self) -> dict[str, Work]:
        """Publish a plan of what is new or changed, if anything; the lock must be held."""
        generations = self.generations
        if generations.identity is not None:
            refuse_other_identity(self.store, generations.identity, self.identity)
        work = _find_work(self.store, self.manifests, generations.active, self.options)
        self._refuse_unrelated_root()
        per_shard = self.config.shardwriter.utterances_per_shard
        generations.extend(work, self.identity, per_shard, self.data_root)
        return work

    def finish(self) -> None:
        """Merge the indexes, write the card, and gather what failed; the lock must be held."""
        _finish(self.store, self.generations.active, self.report, self.manifests)

    def _refuse_unrelated_root(self) -> None:
        """Raise StoreError where data_root is not the recorded one and no utterance shows it to be the same folder."""
        record, root = self.generations.record, self.data_root
        if record is None or record.data_root is None or Path(record.data_root) == root:
            return
        planned = {key for plan in self.generations.active for key in plan.table["key"].to_pylist()}
        if planned and not any(item.key in planned for part in self.manifests.values() for item in part.utterances):
            raise StoreError(
                f"{self.store}: its paths start at {record.data_root}, those of this corpus at {root}, and it holds "
                "none of this corpus' utterances. Give --data_root, so that both start at one folder, or another "
                "--shards folder."
            )

    def encode(self, plans: Sequence[Plan], work: Mapping[str, Work]) -> None:
        """Run the unfinished tasks of what is asked for, and count."""
        for split, item in work.items():
            self.report.count(split, item)
        self.encode_tasks(plans, list(work))

    def encode_tasks(self, plans: Sequence[Plan], splits: Sequence[str], number: int = 0, of: int = 1) -> None:
        """Run the unfinished tasks of some splits, or every `of`-th from the `number`-th on."""
        tasks = [task for task in _unfinished(self.store, plans, splits, number, of) if self._is_wanted(task)]
        started = time.monotonic()
        with Bar(self.report, sum(len(task.rows) for task in tasks), shown=number == 0) as bar:
            run_tasks(self.store, self.data_root, tasks, self.encoding, bar)
        self.report.seconds += time.monotonic() - started

    def _is_wanted(self, task: ShardTask) -> bool:
        """Whether a task has an utterance that the limit, if any, does not leave out."""
        if self.options.limit is None:
            return True
        chosen = {utterance.key for utterance in self.manifests[task.split].utterances[: self.options.limit]}
        return not chosen.isdisjoint(task.rows["key"].to_pylist())


def _everything(manifest: Manifest) -> Work:
    return Work(manifest=manifest, new=range(len(manifest.utterances)))


def _find_work(
    store: Path, manifests: Mapping[str, Manifest], plans: Sequence[Plan], options: BuildOptions
) -> dict[str, Work]:
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


def _refuse_partial_overwrite(store: Path, generations: Generations, options: BuildOptions) -> None:
    stored = {parse_view_split(split)[0] for split in splits_of(generations.active)}
    left_out = stored.difference(options.splits)
    if left_out or options.limit is not None:
        asked = f"--limit {options.limit}" if options.limit is not None else f"without {', '.join(sorted(left_out))}"
        raise ConfigError(
            f"{store}: --overwrite replaces the whole store, so that it keeps one identity, but was asked {asked}. "
            "Give --data_split all and no --limit, or another --shards folder."
        )


def _unfinished(
    store: Path, plans: Sequence[Plan], splits: Sequence[str], number: int = 0, of: int = 1
) -> list[ShardTask]:
    """Tasks without a complete shard. A part is cut from all tasks, so that it stays what it is while others run."""
    complete = {record.shard for split in splits for record in complete_shards(store, plans, split).shards}
    tasks = [task for plan in plans for task in plan.tasks(splits)]
    return [task for task in tasks[number::of] if task.shard not in complete]


def _stored(store: Path, plans: Sequence[Plan], split: str) -> int:
    catalog = complete_shards(store, plans, split)
    return len(catalog.newest) - len(catalog.failures)


def _finish(store: Path, plans: Sequence[Plan], report: BuildReport, manifests: Mapping[str, Manifest]) -> None:
    """Merge the indexes, write the card, and gather what failed."""
    counts = {}
    for split in splits_of(plans):
        catalog = complete_shards(store, plans, split)
        if not catalog.planned:
            continue
        records = list(catalog.shards)
        merge_indexes(store, split, [read_index(store / f"{r.shard}{INDEX_SUFFIX}")[0] for r in records], records)
        counts[split] = _stored(store, plans, split)
        if split in manifests:
            report.failed[split] = [
                Failure(split, utterance.key, utterance.mouth, catalog.failures[utterance.key])
                for utterance in manifests[split].utterances
                if utterance.key in catalog.failures
            ]
    write_card(store, counts)
