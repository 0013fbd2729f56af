"""Build a store: make or continue it until every utterance of the manifest is stored or has a reason why not."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from configs.errors import ConfigError, StoreError
from configs.schema import Config
from iianet.encoder_source import EncoderSource
from iianet.mouth import FPS
from shardwriter.card import write_card
from shardwriter.catalog import complete_shards, is_store, read_store_record
from shardwriter.format import INDEX_SUFFIX, SPLITS, Identity
from shardwriter.generation import Generations, Work, find_work
from shardwriter.identity import identity_of, refuse_other_identity
from shardwriter.index import merge_indexes, read_index
from shardwriter.lock import build_lock
from shardwriter.manifest import Manifest, load_manifests
from shardwriter.plan import Plan, ShardTask
from shardwriter.tasks import Encoding, run_tasks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What build-shards is asked for, beside the config.

    Attributes:
        splits: To build.
        device: That encodes.
        dtype: Of the embeddings; None is the store's, where it exists, else the config's.
        overwrite: Build everything anew; the old store serves until the new one is complete.
        limit: Take only the first so many utterances of each split, in hash order.
        verify_sources: Digest every npz, even where size and time are as recorded.
        retry_failed: Try those again that failed and have not changed since.
    """

    splits: Sequence[str] = SPLITS
    device: torch.device
    dtype: str | None = None
    overwrite: bool = False
    limit: int | None = None
    verify_sources: bool = False
    retry_failed: bool = False


class Failure(NamedTuple):
    """An utterance that is not stored: its npz relative to data_root, and why."""

    split: str
    key: str
    mouth: str
    reason: str


@dataclass(kw_only=True)
class BuildReport:
    """What a build did, split by split.

    Attributes:
        planned: Why each utterance was encoded or not: new, changed, retried, resumed (of an unfinished shard); skipped
            (stored, or known to fail); left out (by the limit).
        encoded: Utterances stored by this run.
        failed: Everything of these splits that is not stored, from this run or an earlier one.
        shards: Shards published by this run.
        stored_bytes: Bytes of those shards.
        seconds: From the first npz read to the last shard published.
    """

    planned: dict[str, dict[str, int]] = field(default_factory=dict)
    encoded: dict[str, int] = field(default_factory=dict)
    failed: dict[str, list[Failure]] = field(default_factory=dict)
    shards: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0

    def count(self, split: str, work: Work) -> None:
        """Note why utterances are encoded; a second pass takes what it encodes from what the first one skipped."""
        busy = {
            "new": len(work.new),
            "changed": len(work.changed),
            "retried": len(work.retried),
            "resumed": len(work.resumed),
        }
        if split in self.planned:
            for why, count in busy.items():
                self.planned[split][why] += count
            self.planned[split]["skipped"] -= sum(busy.values())
            return
        skipped = len(work.manifest.utterances) - work.left_out - sum(busy.values())
        self.planned[split] = {**busy, "skipped": skipped} | ({"left out": work.left_out} if work.left_out else {})
        self.encoded[split] = 0

    @property
    def any_failed(self) -> bool:
        """Whether some utterance is not stored."""
        return any(self.failed.values())


def survey(config: Config, store: Path, options: BuildOptions) -> tuple[dict[str, Manifest], dict[str, Work]]:
    """What a build would encode, without writing anything (for --dry_run)."""
    recorded = read_store_record(store).data_root if is_store(store) else None
    manifests = load_manifests(config, options.splits, recorded)
    if options.overwrite:
        return manifests, {split: _everything(item) for split, item in manifests.items()}
    plans = Generations.open(store).active if is_store(store) else []
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
    manifests = load_manifests(config, options.splits, record.data_root if record else None)
    source = EncoderSource.from_config(config)
    encoder = source.load(options.device)
    kept = record.identity.dtype if record and not options.overwrite else config.shardwriter.dtype
    identity = identity_of(source, encoder.fingerprint(), options.dtype or kept)
    encoding = Encoding(
        encoder=encoder,
        device=options.device,
        dtype=identity.dtype,
        fps=FPS,
        batch_size=config.shardwriter.batch_size,
        num_workers=config.shardwriter.num_workers,
    )
    if record and not options.overwrite and not _begun_with(store, identity):
        refuse_other_identity(store, record.identity, identity)
    return Build(config, store, options, manifests, identity, encoding)


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
            _finish(self.store, self.generations.active, self.report, self.manifests)
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
        self._encode([replacement], work)
        if _unfinished(self.store, [replacement], SPLITS):
            return
        if not any(_stored(self.store, [replacement], split) for split in SPLITS):
            generations.abandon()
            raise StoreError(
                f"{self.store}: --overwrite could store none of {len(replacement.table)} utterances, so the old store "
                f"stays. Mend data_root ({_data_root(self.manifests)}) or the npz; the log names each."
            )
        generations.switch(_data_root(self.manifests))
        if begins_now:  # all of it was just read
            self.options = replace(self.options, verify_sources=False, retry_failed=False)

    def extend(self) -> None:
        """Plan what is new or changed, if anything, and run the unfinished tasks of the plans that count."""
        generations = self.generations
        if generations.identity is not None:
            refuse_other_identity(self.store, generations.identity, self.identity)
        work = _find_work(self.store, self.manifests, generations.active, self.options)
        self._refuse_unrelated_root()
        per_shard = self.config.shardwriter.utterances_per_shard
        generations.extend(work, self.identity, per_shard, _data_root(self.manifests))
        self._encode(generations.active, work)

    def _refuse_unrelated_root(self) -> None:
        """Raise StoreError where data_root is not the recorded one and no utterance shows it to be the same folder."""
        record, root = self.generations.record, _data_root(self.manifests)
        if record is None or record.data_root is None or Path(record.data_root) == root:
            return
        planned = {key for plan in self.generations.active for key in plan.table["key"].to_pylist()}
        if planned and not any(item.key in planned for part in self.manifests.values() for item in part.utterances):
            raise StoreError(
                f"{self.store}: its paths start at {record.data_root}, those of this corpus at {root}, and it holds "
                "none of this corpus' utterances. Give --data_root, so that both start at one folder, or another "
                "--shards folder."
            )

    def _encode(self, plans: Sequence[Plan], work: Mapping[str, Work]) -> None:
        """Run the unfinished tasks, and count."""
        tasks = [task for task in _unfinished(self.store, plans, list(work)) if self._is_wanted(task)]
        for split, item in work.items():
            self.report.count(split, item)
        started = time.monotonic()
        with _Bar(self.report, sum(len(task.rows) for task in tasks)) as bar:
            run_tasks(self.store, _data_root(self.manifests), tasks, self.encoding, bar)
        self.report.seconds += time.monotonic() - started

    def _is_wanted(self, task: ShardTask) -> bool:
        """Whether a task has an utterance that the limit, if any, does not leave out."""
        if self.options.limit is None:
            return True
        chosen = {utterance.key for utterance in self.manifests[task.split].utterances[: self.options.limit]}
        return not chosen.isdisjoint(task.rows["key"].to_pylist())


def _everything(manifest: Manifest) -> Work:
    return Work(manifest=manifest, new=range(len(manifest.utterances)))


def _data_root(manifests: Mapping[str, Manifest]) -> Path:
    return next(iter(manifests.values())).data_root


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
    stored = {split for plan in generations.active for split in plan.table["split"].unique().to_pylist()}
    left_out = stored.difference(options.splits)
    if left_out or options.limit is not None:
        asked = f"--limit {options.limit}" if options.limit is not None else f"without {', '.join(sorted(left_out))}"
        raise ConfigError(
            f"{store}: --overwrite replaces the whole store, so that it keeps one identity, but was asked {asked}. "
            "Give --data_split all and no --limit, or another --shards folder."
        )


def _unfinished(store: Path, plans: Sequence[Plan], splits: Sequence[str]) -> list[ShardTask]:
    complete = {record.shard for split in splits for record in complete_shards(store, plans, split).shards}
    return [task for plan in plans for task in plan.tasks(splits) if task.shard not in complete]


def _stored(store: Path, plans: Sequence[Plan], split: str) -> int:
    catalog = complete_shards(store, plans, split)
    return len(catalog.newest) - len(catalog.failures)


class _Bar:
    """Shows a build's progress, and keeps its counts."""

    def __init__(self, report: BuildReport, total: int) -> None:
        self.report = report
        self.skipped = sum(counts["skipped"] for counts in report.planned.values())
        self.failures = 0
        self.bar = tqdm(total=total, unit="utt", desc="encoding", dynamic_ncols=True, disable=total == 0)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._show(refresh=True)
        self.bar.close()

    def encoded(self, split: str, key: str) -> None:
        self.report.encoded[split] += 1
        logger.debug("%s %s: encoded", split, key)
        self.bar.update()
        self._show()

    def failed(self, split: str, key: str, mouth: str, reason: str) -> None:
        self.failures += 1
        logger.warning("%s %s: not stored: %s: %s", split, key, mouth, reason)
        self.bar.update()
        self._show()

    def published(self, shard: str, stored_bytes: int) -> None:
        self.report.shards += 1
        self.report.stored_bytes += stored_bytes
        logger.debug("%s: published, %d bytes", shard, stored_bytes)

    def _show(self, refresh: bool = False) -> None:
        encoded = sum(self.report.encoded.values())
        self.bar.set_postfix(encoded=encoded, skipped=self.skipped, failed=self.failures, refresh=refresh)


def _finish(store: Path, plans: Sequence[Plan], report: BuildReport, manifests: Mapping[str, Manifest]) -> None:
    """Merge the indexes, write the card, and gather what failed."""
    counts = {}
    for split in SPLITS:
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
