"""Build a store: make or continue it until every utterance of the manifest is stored or has a reason why not."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from iianet.config.schema import Config
from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError
from shardwriter.build.options import BuildOptions
from shardwriter.build.overwriting import refuse_partial_overwrite, warn_of_dropped_views
from shardwriter.build.report import Bar, BuildReport
from shardwriter.build.survey import all_work, find_all_work, planned_manifests
from shardwriter.build.work import Work
from shardwriter.corpus.manifest import Manifest, load_manifests
from shardwriter.corpus.views import count_views, with_views
from shardwriter.encode.import_embeddings import refuse_views
from shardwriter.encode.job import Recipe
from shardwriter.encode.kernel_choice import MEASURED_FROM, kept_kernels, quickest_kernels
from shardwriter.encode.tasks import Encoding
from shardwriter.format.names import INDEX_SUFFIX, Identity, StoreRecord, parse_view_split, split_view_key
from shardwriter.format.plan import Plan, ShardTask
from shardwriter.storage.lock import build_lock
from shardwriter.storage.mirror import store_name
from shardwriter.store.catalog import is_store, read_store_record, splits_of, write_store_record
from shardwriter.store.completion import announce, finish, holds_anything, unfinished_tasks
from shardwriter.store.generation import Generations, is_begun_with
from shardwriter.store.identity import identity_of, imported_identity, refuse_other_identity

__all__ = ["Build", "BuildOptions", "begin", "build", "prepare"]

logger = logging.getLogger(__name__)


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
    manifests = load_manifests(config, options.splits, record.data_root if record else None)
    storage = options.storage(config, record.identity if record else None)
    encoder: ClipEncoder | None = None
    if options.import_embeddings:
        refuse_views(with_views(manifests, config.shardwriter.views))
        identity = imported_identity(*storage)
    else:
        source = EncoderSource.from_config(config)
        encoder = source.load(options.device)
        kernels = kept_kernels(store, source, encoder.fingerprint, storage, options.overwrite)
        if kernels is None and sum(len(manifest.utterances) for manifest in manifests.values()) >= MEASURED_FROM:
            kernels = quickest_kernels(source, options.device)
        kernels = kernels or encoder.kernels
        identity = identity_of(source, encoder.fingerprint, kernels, *storage)
        if kernels.on(options.device) != encoder.kernels:
            encoder = source.load(options.device, kernels.on(options.device))
    if record and not options.overwrite and not is_begun_with(store, identity):
        refuse_other_identity(store, record.identity, identity)
    data_root = next(iter(manifests.values())).data_root
    recipe = Recipe(store=store, data_root=data_root, config=config, identity=identity)
    return Build(recipe, options, manifests, recipe.encoding(encoder, options.device))


def begin(config: Config, store: Path, options: BuildOptions) -> None:
    """Make a store that holds nothing yet. Raises FeatureStoreError where a build could not start."""
    made = prepare(config, store, options)
    with build_lock(store, patient=True):  # of several ranks one makes it, and the others wait
        if not is_store(store):
            write_store_record(store, StoreRecord(identity=made.identity, data_root=str(made.data_root), plans=()))


@dataclass
class Build:
    """A build that can start; `manifests` are those of the splits, without views."""

    recipe: Recipe
    options: BuildOptions
    manifests: Mapping[str, Manifest]
    encoding: Encoding
    report: BuildReport = field(default_factory=BuildReport)
    generations: Generations = field(init=False)
    tasks: Sequence[ShardTask] = ()

    @property
    def store(self) -> Path:
        """Its folder."""
        return self.recipe.store

    @property
    def data_root(self) -> Path:
        """Folder that the paths of the manifests are relative to."""
        return self.recipe.data_root

    @property
    def identity(self) -> Identity:
        """What the embeddings are made with."""
        return self.recipe.identity

    @property
    def views(self) -> int:
        """How many the config asks for."""
        return self.recipe.config.shardwriter.views

    def run(self) -> BuildReport:
        """Encode and store. Raises FeatureStoreError where another build is at it, or the store cannot be written."""
        with build_lock(self.store):
            self.open()
            self.encode(*self.publish_next())
            self.conclude()
        return self.report

    def open(self) -> None:
        """Read the plans, and delete what dead builds left; the lock must be held, as for all that follows."""
        self.generations = Generations.open(self.store, self.recipe.config.shardwriter.keep_replaced_days)
        self.generations.clean()
        self.options.outlet.dropped()
        waiting = self.generations.compaction
        if waiting is not None:
            logger.info(
                "%s: a --compact was begun (%s) and waits; give --compact to go on",
                store_name(self.store),
                waiting.name,
            )

    def publish_next(self) -> tuple[Sequence[Plan], dict[str, Work]]:
        """Publish a plan, if anything is new. Returns the plans to run now, and what is left of them."""
        if not self.is_replacing():
            work = self.publish()
            return self.generations.active, work
        if self._is_begun():
            plan, work = self._begun_replacement()
        else:
            plan, work = self._begin_replacement()
            self.options = replace(self.options, verify_sources=False, retry_failed=False)  # all of it is read now
        announce(self.store, self.generations.active)
        return [plan], work

    def conclude(self) -> None:
        """Make a plan that replaces everything count, if it was run and is complete; then sum up.

        Raises:
            StoreError: Nothing of it could be stored; the old store stays.
        """
        if self._is_begun():
            self._end_replacement()
            if not self._is_begun():
                self.extend()
        self.finish()

    def survey(self) -> dict[str, Work]:
        """What `run` would encode, without writing anything. Raises FeatureStoreError where it would refuse."""
        self.generations = Generations.open(self.store)
        if not self.is_replacing():
            return self.find_work()
        if self._is_begun():
            return self._begun_replacement()[1]
        refuse_partial_overwrite(self.store, self.generations, self.options)
        return all_work(with_views(self.manifests, self.views))

    def is_replacing(self) -> bool:
        """Whether an --overwrite is asked for, or one with this identity was begun."""
        waiting = self.generations.replacement
        if waiting and self._is_begun():
            logger.info("%s: continues the --overwrite that was begun (%s)", store_name(self.store), waiting.name)
            return True
        if self.options.overwrite and self.generations.record is not None:
            return True
        if waiting:
            logger.warning(
                "%s: an --overwrite with another identity was begun and waits (%s)",
                store_name(self.store),
                waiting.name,
            )
        return False

    def _end_replacement(self) -> None:
        generations, plan = self.generations, self.generations.replacement
        assert plan is not None
        if unfinished_tasks(self.store, [plan], splits_of([plan])):
            self.report.waiting = plan.name
            return
        if not holds_anything(self.store, plan):
            generations.abandon()
            self.options.outlet.dropped()
            raise StoreError(
                f"{store_name(self.store)}: --overwrite could store none of {len(plan.table)} utterances, so the old "
                f"store stays. Mend data_root ({self.data_root}) or the npz; the log names each."
            )
        generations.switch(self.data_root)

    def _is_begun(self) -> bool:
        """Whether an --overwrite with this identity waits to be continued."""
        waiting = self.generations.replacement
        return waiting is not None and waiting.identity == self.identity

    def _begin_replacement(self) -> tuple[Plan, dict[str, Work]]:
        """Publish a plan of everything; of views only those that are asked for."""
        generations, views = self.generations, self.views
        refuse_partial_overwrite(self.store, generations, self.options)
        warn_of_dropped_views(self.store, count_views(splits_of(generations.active)), views)
        generations.abandon()
        self.options.outlet.dropped()
        manifests = with_views(self.manifests, views)
        plan = generations.replace(manifests, self.identity, self._utterances_per_shard)
        return plan, all_work(manifests)

    def _begun_replacement(self) -> tuple[Plan, dict[str, Work]]:
        """The plan that waits, and what is left of it: what is new or changed comes after it."""
        plan = self.generations.replacement
        assert plan is not None
        manifests = planned_manifests(self.manifests, 0, [plan])
        found = find_all_work(self.store, manifests, [plan], self.options)
        return plan, {split: replace(item, new=(), changed=(), retried=()) for split, item in found.items()}

    def extend(self) -> None:
        """Plan what is new or changed, if anything, and run the unfinished tasks of the plans that count."""
        self.encode(self.generations.active, self.publish())

    def publish(self) -> dict[str, Work]:
        """Publish a plan of what is new or changed, if anything; the lock must be held."""
        work = self.find_work()
        self.generations.extend(work, self.identity, self._utterances_per_shard, self.data_root)
        return work

    def find_work(self) -> dict[str, Work]:
        """What is new or changed. Raises StoreError where it cannot be added to this store."""
        generations = self.generations
        if generations.identity is not None:
            refuse_other_identity(self.store, generations.identity, self.identity)
        manifests = planned_manifests(self.manifests, self.views, generations.active)
        work = find_all_work(self.store, manifests, generations.active, self.options)
        self._refuse_unrelated_root()
        return work

    def finish(self) -> None:
        """Merge the indexes, write the card, and gather what failed; the lock must be held."""
        self.report.failed = finish(self.store, self.generations.active, self.manifests)
        self.options.outlet.rest()

    def _refuse_unrelated_root(self) -> None:
        """Raise StoreError where data_root is not the recorded one and no utterance shows it to be the same folder."""
        record, root = self.generations.record, self.data_root
        if record is None or record.data_root is None or Path(record.data_root) == root:
            return
        planned = {key for plan in self.generations.active for key in plan.table["key"].to_pylist()}
        if planned and not any(item.key in planned for part in self.manifests.values() for item in part.utterances):
            raise StoreError(
                f"{store_name(self.store)}: its paths start at {record.data_root}, those of this corpus at {root}, and "
                "it holds none of this corpus' utterances. Give --data_root, so that both start at one folder, or "
                "another --shards folder."
            )

    def encode(self, plans: Sequence[Plan], work: Mapping[str, Work]) -> None:
        """Run the unfinished tasks of what is asked for, and count."""
        self.count(work)
        self.tasks = self.wanted_tasks(plans, list(work))
        self.options.outlet.plans()
        self.run_tasks(self.tasks, total=sum(len(task.rows) for task in self.tasks))

    def unpublished(self) -> list[ShardTask]:
        """The tasks that `encode` took on, and that have no shard yet."""
        return [task for task in self.tasks if not (self.store / f"{task.shard}{INDEX_SUFFIX}").is_file()]

    def count(self, work: Mapping[str, Work]) -> None:
        """Note why utterances are encoded."""
        for split, item in work.items():
            self.report.count(split, item)

    def wanted_tasks(
        self, plans: Sequence[Plan], splits: Sequence[str], number: int = 0, of: int = 1
    ) -> list[ShardTask]:
        """The unfinished tasks of what is asked for, or every `of`-th from the `number`-th on."""
        return [task for task in unfinished_tasks(self.store, plans, splits, number, of) if self._is_wanted(task)]

    def run_tasks(self, tasks: Iterable[ShardTask], *, total: int | None, shown: bool = True) -> None:
        """Run tasks; their `total` of utterances is for the progress bar, None where it is not known."""
        started = time.monotonic()
        try:
            with Bar(self.report, total, self.options.outlet.shard, shown=shown) as bar:
                self.options.executor.run(self.recipe, self.encoding, tasks, bar)
            self.options.outlet.wait()
        finally:
            self.report.seconds += time.monotonic() - started

    @property
    def _utterances_per_shard(self) -> int:
        return self.recipe.config.shardwriter.utterances_per_shard

    def _is_wanted(self, task: ShardTask) -> bool:
        """Whether a task has an utterance that the limit, if any, does not leave out."""
        if self.options.limit is None:
            return True
        split, _ = parse_view_split(task.split)
        chosen = {utterance.key for utterance in self.manifests[split].utterances[: self.options.limit]}
        return any(split_view_key(key)[0] in chosen for key in task.rows["key"].to_pylist())
