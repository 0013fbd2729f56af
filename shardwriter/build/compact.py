"""Copy what counts of a store into new shards, and leave out what newer entries superseded (build-shards --compact)."""

import logging
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from iianet.errors import StoreError
from iianet.wording import counted
from shardwriter.corpus.manifest import Manifest
from shardwriter.encode.copied_split import CopiedSplit
from shardwriter.format.plan import Plan, ShardTask
from shardwriter.format.shard_writer import ShardWriter
from shardwriter.inspect.summary import readable_bytes
from shardwriter.storage.lock import build_lock
from shardwriter.storage.mirror import mirror_at, store_name
from shardwriter.storage.outlet import Folder, Outlet
from shardwriter.store.catalog import Catalog, SplitCatalog, complete_shards, read_store_record, splits_of
from shardwriter.store.completion import announce, finish, unfinished_tasks
from shardwriter.store.generation import Generations

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CompactReport:
    """What a compaction did.

    Attributes:
        copied: Entries in the new shards, failures too.
        superseded: Entries that newer ones had taken the place of.
        shards: How many there were, and how many there are.
        stored_bytes: Of their tars, likewise.
        kept: What is said of replaced shards that stay.
    """

    copied: int
    superseded: int
    shards: tuple[int, int]
    stored_bytes: tuple[int, int]
    kept: str = ""

    def lines(self) -> list[str]:
        """For people."""
        before, after = (count / 1e6 for count in self.stored_bytes)
        lines = [
            f"entries: {self.copied} copied, {self.superseded} superseded ones left out",
            f"shards:  {self.shards[0]} before, {self.shards[1]} after",
            f"bytes:   {before:.1f} MB before, {after:.1f} MB after",
        ]
        return [*lines, f"kept:    {self.kept}"] if self.kept else lines


@dataclass(kw_only=True)
class Compaction:
    """What is to be compacted.

    Attributes:
        store: Folder of the store.
        utterances_per_shard: Of the new shards.
        outlet: Takes what is written to where the store is.
        keep_replaced_days: See the config's key of this name.
    """

    store: Path
    utterances_per_shard: int
    outlet: Outlet = field(default_factory=Folder)
    keep_replaced_days: float | None = None

    def survey(self) -> CompactReport | None:
        """What `run` would do, by the shards that are there; None where there is nothing to do.

        Raises:
            StoreError: It cannot be done now.
        """
        _reader = Catalog.open_to_read(self.store)  # or shards may be deleted while they are counted
        return self._survey(Generations.open(self.store))

    def run(self) -> CompactReport | None:
        """Do it, or go on with one that was begun. Returns None where there is nothing to do.

        Raises:
            StoreError: It cannot be done now, or a shard is damaged: what is copied is what was stored.
        """
        read_store_record(self.store)  # raises, before a folder is made for what is no store
        with build_lock(self.store):
            generations = Generations.open(self.store, self.keep_replaced_days)
            generations.clean()
            self.outlet.dropped()
            plan = self._begun(generations)
            report = self._survey(generations)
            if report is None:
                finish(self.store, generations.active, {})  # one that made its copies count may have died before
                self.outlet.rest()
                return None
            if plan is None:
                self._refuse_full_disk(report.stored_bytes[1])
                plan = generations.compact(self._manifests(), self.utterances_per_shard)
            announce(self.store, generations.active)
            self.outlet.plans()
            self._copy(generations, plan)
            generations.switch_to_copies()
            finish(self.store, generations.active, {})
            self.outlet.rest()
            report.kept = generations.words_of_retired() if generations.retired else ""
            report.shards, report.stored_bytes = _differences(report, self.store, plan)
        return report

    def _survey(self, generations: Generations) -> CompactReport | None:
        self._refuse_unready(generations)
        begun = generations.compaction
        active = generations.active[: len(begun.base)] if begun else generations.active
        held = [complete_shards(self.store, active, split) for split in splits_of(active)]
        entries, newest = sum(len(part.entries) for part in held), sum(len(part.newest) for part in held)
        records = [record for part in held for record in part.shards]
        full = all(len(part.shards) <= self._shards_of(len(part.newest)) for part in held)
        if entries == newest and full and begun is None:
            return None
        shards = sum(self._shards_of(len(part.newest)) for part in held)
        stored = sum(record.tar_size for record in records)
        return CompactReport(
            copied=newest,
            superseded=entries - newest,
            shards=(len(records), shards),
            stored_bytes=(stored, round(sum(map(_newest_bytes, held)))),
        )

    def _shards_of(self, entries: int) -> int:
        return -(-entries // self.utterances_per_shard)

    def _begun(self, generations: Generations) -> Plan | None:
        """One that was begun and can be gone on with; one with shards of another size is dropped."""
        begun = generations.compaction
        if begun is None:
            return None
        rows: Counter[str] = Counter()
        shards: Counter[str] = Counter()
        for task in begun.tasks(splits_of([begun])):
            rows[task.split] += len(task.rows)
            shards[task.split] += 1
        if all(count == self._shards_of(rows[split]) for split, count in shards.items()):
            logger.info("%s: goes on with %s", store_name(self.store), begun.name)
            return begun
        logger.warning(
            "%s: %s was begun with shards of another size, so it is dropped", store_name(self.store), begun.name
        )
        generations.abandon()
        self.outlet.dropped()
        return None

    def _refuse_full_disk(self, needed: int) -> None:
        if mirror_at(self.store) is not None:  # what is uploaded is deleted here
            return
        free = shutil.disk_usage(self.store).free
        if free < needed:
            raise StoreError(
                f"{store_name(self.store)}: the new shards take about {readable_bytes(needed)} beside the old ones, "
                f"and {readable_bytes(free)} are free; make room, then compact"
            )

    def _refuse_unready(self, generations: Generations) -> None:
        if generations.record is None:
            raise StoreError(f"{store_name(self.store)}: is no store yet; make one with build-shards")
        if generations.replacement is not None:
            raise StoreError(
                f"{store_name(self.store)}: an --overwrite was begun ({generations.replacement.name}); finish that "
                "first, with the same command, then compact"
            )
        base = generations.active[: len(generations.compaction.base)] if generations.compaction else generations.active
        left = unfinished_tasks(self.store, base, splits_of(base))
        if left:
            raise StoreError(
                f"{store_name(self.store)}: {counted(len(left), 'planned shard')} not built yet (e.g. "
                f"{left[0].shard}); run build-shards without --compact first, then compact"
            )

    def _manifests(self) -> dict[str, Manifest]:
        """What the store itself recorded, views too; nothing is read of the corpus."""
        catalog = Catalog.open(self.store)
        root = Path(catalog.record.data_root or ".")
        return {split: catalog.manifest(split, root) for split in catalog.splits}

    def _copy(self, generations: Generations, plan: Plan) -> None:
        base = generations.active[: len(plan.base)]
        tasks = unfinished_tasks(self.store, [plan], splits_of([plan]))
        total = sum(len(task.rows) for task in tasks)
        with tqdm(total=total, unit="utt", desc="copying", dynamic_ncols=True, disable=not total) as bar:
            for split in splits_of([plan]):
                with closing(CopiedSplit(self.store, split, complete_shards(self.store, base, split))) as source:
                    for task in tasks:
                        if task.split == split:
                            self._write(task, source)
                            bar.update(len(task.rows))
        self.outlet.wait()

    def _write(self, task: ShardTask, source: CopiedSplit) -> None:
        with ShardWriter(self.store, task.shard, task.plan) as writer:
            for key in task.rows["key"].to_pylist():
                source.copy(key, writer)
        self.outlet.shard(task.shard)


def _newest_bytes(held: SplitCatalog) -> float:
    """About what the tars of a split would take with their newest entries alone."""
    stored = held.entries["error"].null_count
    return float(sum(record.tar_size for record in held.shards) * len(held.stored_rows) / max(stored, 1))


def _differences(report: CompactReport, store: Path, plan: Plan) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shards and bytes before, as the survey found them, and now."""
    records = [record for split in splits_of([plan]) for record in complete_shards(store, [plan], split).shards]
    return (report.shards[0], len(records)), (report.stored_bytes[0], sum(record.tar_size for record in records))
