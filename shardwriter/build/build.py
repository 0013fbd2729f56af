"""Build a store: make or resume it until every utterance of the manifest is stored or has a reason why not."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from iianet.config.schema import Config
from iianet.encoder.kernels import Kernels
from iianet.errors import StoreError
from shardwriter.build.difference import (
    Difference,
    find_differences,
    other_stored_lengths,
    refuse_missing_embeddings,
    refuse_missing_files,
    refuse_unrelated_root,
)
from shardwriter.build.options import BuildOptions
from shardwriter.build.preparation import Preparation, is_overwrite
from shardwriter.build.report import Bar, BuildReport, counted_corpus, failures_of
from shardwriter.corpus.manifest import manifest_folders
from shardwriter.corpus.planning import plan_utterances
from shardwriter.corpus.views import with_views
from shardwriter.encode.encoded import EncodedClips
from shardwriter.encode.imported import ImportedEmbeddings
from shardwriter.encode.sources import SampleSource
from shardwriter.execute.executor import Job
from shardwriter.execute.operation import WriteTasks, run_operation
from shardwriter.format.names import count_views, index_name, parse_view_split, split_view_key
from shardwriter.format.plan import PlanHeader, PlanKind, ShardTask
from shardwriter.format.record import Identity
from shardwriter.storage.storage import Storage
from shardwriter.store.identity import refuse_other_identity
from shardwriter.store.snapshot import Snapshot, is_store
from shardwriter.store.transaction import Transaction, open_transaction

logger = logging.getLogger(__name__)

_OWN = ("device", "executor", "rank")
"""Options that each rank may have for itself."""
_READ_ONCE = ("verify_sources", "retry_failed")
"""Options that have no further effect once everything was read."""


def build(config: Config, storage: Storage, options: BuildOptions) -> BuildReport:
    """Make or resume a store.

    Raises:
        FeatureStoreError: It could not start: manifest, weights, identity, or another build on this store. Or it could
            not go on: the store cannot be written.
    """
    made = prepare(config, storage, options)
    run_operation(made, storage, options.runner)
    return made.report


def prepare(config: Config, storage: Storage, options: BuildOptions) -> "Build":
    """Load what a build needs, without writing anything. Raises FeatureStoreError where something is wrong."""
    steps = Preparation(config, storage, options)
    made = Build(steps)
    steps.refuse_other_identity()
    return made


def create(config: Config, storage: Storage, options: BuildOptions) -> None:
    """Make a store that holds nothing yet, where there is none. Raises FeatureStoreError where a build could not
    start."""
    made = prepare(config, storage, options)
    with open_transaction(storage, patient=True) as transaction:  # of several ranks one makes it, and the others wait
        if transaction.snapshot is None:
            transaction.create(made.identity, str(made.data_root))


class Build:
    """A build that can start. See `Operation`.

    Attributes:
        config: Of the corpus, the encoder and the shards.
        storage: Where the store lies.
        options: What is asked for.
        manifests: Of the splits, without views.
        data_root: Folder that the paths of the manifests are relative to.
        identity: What the embeddings are made with.
        encoder: On the device of this process; None where embeddings are imported, or it is loaded when it is used.
        report: What was done so far.
        taken: Tasks that were taken on.
        keep_replaced_days: See `Operation`.
    """

    def __init__(self, steps: Preparation) -> None:
        """Take the steps of a preparation; a store of another identity is not refused yet."""
        self.config, self.storage, self.options = steps.config, steps.storage, steps.options
        self.manifests, self.identity, self.encoder = steps.manifests, steps.identity, steps.encoder
        self.data_root = next(iter(self.manifests.values())).data_root
        if self.encoder is not None:
            kernels = Kernels.from_record(self.identity.precision).on(self.options.device)
            self.encoder = self.encoder if self.encoder.kernels == kernels else None
        is_import = self.options.import_embeddings
        self.report = BuildReport(corpus=counted_corpus(self.manifests), is_import=is_import)
        self.taken: Sequence[ShardTask] = ()
        self.keep_replaced_days = self.config.shardwriter.keep_replaced_days

    def begin(self, transaction: Transaction) -> Sequence[ShardTask]:
        """See `Operation`. Raises StoreError where the store refuses what is asked for."""
        self._log_pending(transaction.pending)
        header, found = transaction.pending, self._survey(transaction.snapshot)
        if header is None or not is_overwrite(header, self.identity):
            if transaction.snapshot is None or not self.options.overwrite:
                return self._extend(transaction, found)
            header = self._begin_replacement(transaction, found)
            # Everything is read now, so what comes after it need not ask again.
            self.options = replace(self.options, verify_sources=False, retry_failed=False)
        self.report.count(found)
        return self._take(transaction, [header], list(found))

    def end(self, transaction: Transaction, write: WriteTasks) -> None:
        """See `Operation`.

        Raises:
            StoreError: An --overwrite could store nothing; the old store stays.
        """
        header = transaction.pending
        if header is not None and is_overwrite(header, self.identity):
            self._end_replacement(transaction, header)
            if self.report.waiting is None:
                write(self._extend(transaction, self._differences(transaction.snapshot)))
        found = transaction.conclude()
        self.report.failed = failures_of(self.manifests, found)
        fps, tolerance = self.identity.fps, self.config.datamodule.data_config.frame_tolerance
        for split, manifest in self.manifests.items():
            if split in found:
                self.report.other_lengths += other_stored_lengths(manifest, found[split], fps, tolerance)
        for other in self.report.other_lengths:
            logger.debug("of another length than its audio: %s", other)

    def survey(self) -> dict[str, Difference]:
        """What a build would store, without writing anything. Raises FeatureStoreError where it would refuse."""
        return self._survey(Snapshot.open(self.storage, hold=False) if is_store(self.storage) else None)

    def job(self) -> Job:
        """See `Operation`."""
        root, settings, identity = self.data_root, self.config.shardwriter, self.identity
        source: SampleSource
        if identity.is_imported:
            source = ImportedEmbeddings(data_root=root, settings=settings, identity=identity)
        else:
            weights = self.config.encoder_source()
            source = EncodedClips(
                data_root=root, encoder_source=weights, settings=settings, identity=identity, encoder=self.encoder
            )
        return Job(storage=self.storage, source=source)

    def watch(self, total: int | None, *, shown: bool) -> Bar:
        """See `Operation`."""
        return Bar(self.report, total, "importing" if self.identity.is_imported else "encoding", shown=shown)

    def unpublished(self) -> list[ShardTask]:
        """The tasks that were taken on, and that have no shard yet."""
        files = self.storage.files()
        return [task for task in self.taken if index_name(task.shard) not in files]

    def asked(self) -> str:
        """See `Operation`."""
        own = {item.name: getattr(self.options, item.name) for item in fields(self.options) if item.name not in _OWN}
        data = self.config.datamodule.data_config
        shared = [self.config.shardwriter, self.config.videonet, data.train_dir, data.valid_dir, data.test_dir]
        return xxhash.xxh3_64_hexdigest(repr((own, shared)).encode())

    def to_share(self) -> Mapping[str, Any]:
        """See `Operation`."""
        own = {"identity": asdict(self.identity), "data_root": str(self.data_root)}
        return {**own, **{name: getattr(self.options, name) for name in _READ_ONCE}}

    def join(self, shared: Mapping[str, Any]) -> None:
        """See `Operation`."""
        identity = Identity(**shared["identity"])
        if identity != self.identity:
            self.identity, self.encoder = identity, None
        self.data_root = Path(shared["data_root"])
        self.options = replace(self.options, **{name: shared[name] for name in _READ_ONCE})

    def counts(self) -> Mapping[str, Any]:
        """See `Operation`."""
        return self.report.counts()

    def add_counts(self, counts: Sequence[Mapping[str, Any]]) -> None:
        """See `Operation`."""
        self.report.add_counts(counts)

    @property
    def _views(self) -> int:
        return self.config.shardwriter.views

    def _log_pending(self, pending: PlanHeader | None) -> None:
        """Say what is in progress."""
        name = self.storage.name
        if pending is None:
            return
        if pending.kind == "compact":
            logger.info("%s: a --compact is in progress (%s); give --compact to resume it", name, pending.name)
        elif is_overwrite(pending, self.identity):
            logger.info("%s: resuming the --overwrite in progress (%s)", name, pending.name)
        elif not self.options.overwrite:
            logger.warning("%s: an --overwrite with another identity is in progress (%s)", name, pending.name)

    def _survey(self, snapshot: Snapshot | None) -> dict[str, Difference]:
        """What is stored first. Raises ManifestError where the files of none of it exist."""
        found = self._first(snapshot)
        is_moved = snapshot is not None and snapshot.data_root not in (None, self.data_root)  # which is to be recorded
        everything = [(it.manifest, range(len(it.manifest.utterances))) for it in found.values()]
        wanted = [(it.manifest, it.to_plan) for it in found.values()]
        refuse_missing_files(everything if is_moved else wanted)
        if snapshot is None:
            self._warn_of_corpus_folder()
            if self.options.import_embeddings:
                refuse_missing_embeddings(wanted)
        return found

    def _warn_of_corpus_folder(self) -> None:
        """Say where a new store would lie among the corpus' own files: who deletes it would delete them, too."""
        lists = [folder for named in manifest_folders(self.config).values() for folder in named]
        mouths = [it.utterances[0].mouth for it in self.manifests.values() if len(it.utterances)]
        folders = [self.data_root, *lists, *((self.data_root / mouth).parent for mouth in mouths)]
        if os.path.realpath(self.storage.name) in map(os.path.realpath, folders):
            logger.warning(
                "%s: is a folder of the corpus, so the store will lie among the corpus' own files; a folder of its own "
                "is easier to copy and to delete: give another one with --shards",
                self.storage.name,
            )

    def _first(self, snapshot: Snapshot | None) -> dict[str, Difference]:
        """What an --overwrite in progress lacks, all for one that begins, else what is new or changed."""
        if snapshot and snapshot.pending and is_overwrite(snapshot.pending, self.identity):
            return self._resumed(snapshot, snapshot.pending)
        if snapshot and self.options.overwrite:
            self.options.refuse_partial_overwrite(snapshot)
            return find_differences(with_views(self.manifests, self._views), None, [], self.options)
        return self._differences(snapshot)

    def _extend(self, transaction: Transaction, differences: Mapping[str, Difference]) -> Sequence[ShardTask]:
        """Plan what is new or changed, if anything, and take the unfinished tasks of the active plans."""
        snapshot = transaction.snapshot
        if snapshot is not None:
            refuse_other_identity(self.storage.name, snapshot.identity, self.identity)
        self.report.count(differences)
        chosen = {split: found for split, found in differences.items() if len(found.to_plan)}
        if chosen or snapshot is None:
            self._publish(transaction, "extend", chosen)
        else:
            transaction.move(str(self.data_root))
        return self._take(transaction, transaction.active, list(differences))

    def _differences(self, snapshot: Snapshot | None) -> dict[str, Difference]:
        """What the active plans lack, of views too that the store has and nobody asks for."""
        views = max(self._views, count_views(snapshot.splits)) if snapshot else self._views
        headers = snapshot.active if snapshot else []
        found = find_differences(with_views(self.manifests, views), snapshot, headers, self.options)
        if snapshot:
            refuse_unrelated_root(self.manifests, snapshot, self.data_root)
        return found

    def _resumed(self, snapshot: Snapshot, header: PlanHeader) -> dict[str, Difference]:
        """What is left of the --overwrite in progress: what is new or changed comes after it."""
        manifests = with_views(self.manifests, count_views(header.shards))
        found = find_differences(manifests, snapshot, [header], self.options)
        none = np.empty(0, dtype=np.int64)
        return {split: replace(item, new=none, changed=none, retried=none) for split, item in found.items()}

    def _begin_replacement(self, transaction: Transaction, chosen: Mapping[str, Difference]) -> PlanHeader:
        """Publish a plan of everything; of views only those that are asked for."""
        held = count_views(transaction.opened.splits)
        if held > self._views:
            logger.warning(
                "%s: has %d augmented views of each training utterance, and --overwrite makes %d, as asked; --views %d "
                "would keep them all",
                self.storage.name,
                held,
                self._views,
                held,
            )
        transaction.abandon()
        return self._publish(transaction, "replace", chosen)

    def _publish(self, transaction: Transaction, kind: PlanKind, chosen: Mapping[str, Difference]) -> PlanHeader:
        rows = {split: (found.manifest, found.to_plan) for split, found in chosen.items()}
        base = [header.name for header in transaction.active]
        plan = plan_utterances(kind, base, self.identity, rows, self.config.shardwriter.utterances_per_shard)
        transaction.publish(plan, str(self.data_root))
        return plan.header

    def _end_replacement(self, transaction: Transaction, header: PlanHeader) -> None:
        if not transaction.is_complete(header):
            self.report.waiting = header.name
            return
        if not transaction.holds_anything(header):
            transaction.abandon()
            raise StoreError(
                f"{self.storage.name}: --overwrite could store none of {header.rows} utterances, so the old store "
                f"stays. Fix data_root ({self.data_root}) or the npz; the log names each."
            )
        transaction.switch(str(self.data_root))

    def _take(
        self, transaction: Transaction, headers: Sequence[PlanHeader], splits: Sequence[str]
    ) -> Sequence[ShardTask]:
        """The unfinished tasks of what is asked for."""
        tasks = transaction.unfinished(headers, splits)
        self.taken = [task for task in tasks if self._is_wanted(task)]
        return self.taken

    def _is_wanted(self, task: ShardTask) -> bool:
        """Whether a task has an utterance that the limit, if any, does not leave out."""
        if self.options.limit is None:
            return True
        split, _ = parse_view_split(task.split)
        chosen = set(self.manifests[split].utterances.column("key")[: self.options.limit].to_pylist())
        return any(split_view_key(key)[0] in chosen for key in task.rows["key"].to_pylist())
