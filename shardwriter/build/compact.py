"""Copy the newest entries of a store into new, full shards, without what they superseded (build-shards --compact)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from iianet.errors import StoreError
from iianet.wording import counted, readable_bytes
from shardwriter.build.report import Bar, BuildReport
from shardwriter.corpus.planning import plan_utterances
from shardwriter.encode.copied import CopiedSamples
from shardwriter.encode.write_shards import Event, NotStored, Stored
from shardwriter.execute.executor import Job
from shardwriter.execute.operation import Operation, WriteTasks
from shardwriter.format.plan import PlanHeader, ShardTask
from shardwriter.storage.storage import Storage
from shardwriter.store.entries import SplitEntries
from shardwriter.store.snapshot import Snapshot, read_record
from shardwriter.store.transaction import COUNTED_COLUMNS, Transaction, open_transaction

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CompactReport:
    """What a compaction did, or would do.

    Attributes:
        copied: Entries in the new shards, failures too.
        superseded: Entries that newer ones have replaced.
        shards: How many there were, and how many there are.
        stored_bytes: Bytes of their tars, likewise.
    """

    copied: int
    superseded: int
    shards: tuple[int, int]
    stored_bytes: tuple[int, int]

    def lines(self) -> list[str]:
        """For people."""
        before, after = (count / 1e6 for count in self.stored_bytes)
        return [
            f"entries: {self.copied} copied, {self.superseded} superseded ones left out",
            f"shards:  {self.shards[0]} before, {self.shards[1]} after",
            f"bytes:   {before:.1f} MB before, {after:.1f} MB after",
        ]


@dataclass(kw_only=True)
class Compaction(Operation):
    """What is to be compacted. See `Operation`.

    Attributes:
        storage: Where the store lies.
        utterances_per_shard: Of the new shards.
        keep_replaced_days: See the config's key of this name.
        report: What was done; None where there was nothing to do.
    """

    storage: Storage
    utterances_per_shard: int
    keep_replaced_days: float | None = None
    report: CompactReport | None = None
    _base: tuple[str, ...] = ()

    def survey(self) -> CompactReport | None:
        """What it would do, by the shards that are there; None where there is nothing to do.

        Raises:
            StoreError: It cannot be done now.
        """
        transaction = Transaction(self.storage, None)
        transaction.snapshot = Snapshot.open(self.storage)
        return self._survey(transaction)

    def begin(self, transaction: Transaction) -> Sequence[ShardTask]:
        """See `Operation`. Raises StoreError where it cannot be done now."""
        if transaction.snapshot is None:
            read_record(self.storage)  # says that there is no store
        header = self._resumed(transaction)
        self.report = self._survey(transaction)
        if self.report is None:
            return []
        if header is None:
            self._refuse_full_disk(self.report.stored_bytes[1])
            header = self._publish(transaction)
        self._base = header.base
        return transaction.unfinished([header])

    def end(self, transaction: Transaction, write: WriteTasks) -> None:  # noqa: ARG002 (one plan is all)
        """See `Operation`."""
        header = _pending(transaction)
        if header is not None:
            report = self.report or self._survey(transaction)  # of a rank that has not planned
            assert report is not None
            transaction.switch(transaction.opened.record.data_root)
            found = _entries(transaction.opened, [header])
            self.report = replace(
                report,
                shards=(report.shards[0], sum(len(part.shards) for part in found)),
                stored_bytes=(report.stored_bytes[0], _tar_bytes(found)),
            )
        transaction.conclude()

    def job(self) -> Job:
        """See `Operation`."""
        return Job(storage=self.storage, source=CopiedSamples(storage=self.storage.absolute(), base=self._base))

    def watch(self, total: int | None, *, shown: bool) -> Bar:
        """See `Operation`."""
        return _QuietBar(BuildReport(), total, "copying", shown=shown)

    def asked(self) -> str:
        """See `Operation`."""
        return f"compact {self.utterances_per_shard} {self.keep_replaced_days}"

    def to_share(self) -> Mapping[str, Any]:
        """See `Operation`."""
        return {"base": list(self._base)}

    def join(self, shared: Mapping[str, Any]) -> None:
        """See `Operation`."""
        self._base = tuple(shared["base"])

    def add_counts(self, counts: Sequence[Mapping[str, Any]]) -> None:
        """See `Operation`: there are none, since the report is of the store itself."""

    def _survey(self, transaction: Transaction) -> CompactReport | None:
        self._refuse_unready(transaction)
        headers = self._source_headers(transaction)
        found = _entries(transaction.opened, headers)
        entries, newest = sum(len(part.entries) for part in found), sum(len(part.newest_rows) for part in found)
        full = all(len(part.shards) <= self._num_shards(len(part.newest_rows)) for part in found)
        if entries == newest and full and transaction.pending is None:
            return None
        return CompactReport(
            copied=newest,
            superseded=entries - newest,
            shards=(
                sum(len(part.shards) for part in found),
                sum(self._num_shards(len(part.newest_rows)) for part in found),
            ),
            stored_bytes=(_tar_bytes(found), round(sum(map(_newest_bytes, found)))),
        )

    def _num_shards(self, entries: int) -> int:
        return -(-entries // self.utterances_per_shard)

    def _source_headers(self, transaction: Transaction) -> list[PlanHeader]:
        """The plans that are copied: those that were active when a compaction in progress started."""
        pending = _pending(transaction)
        return [transaction.opened.header(name) for name in pending.base] if pending else transaction.active

    def _resumed(self, transaction: Transaction) -> PlanHeader | None:
        """A compaction in progress; one with shards of another size is abandoned."""
        pending = _pending(transaction)
        if pending is None:
            return None
        splits = transaction.opened.plan(pending, ("split",)).table["split"]
        rows = {found["values"]: found["counts"] for found in splits.value_counts().to_pylist()}
        if all(count == self._num_shards(rows[split]) for split, count in pending.shards.items()):
            logger.info("%s: resuming %s", self.storage.name, pending.name)
            return pending
        logger.warning("%s: %s has shards of another size, so it is abandoned", self.storage.name, pending.name)
        transaction.abandon()
        return None

    def _publish(self, transaction: Transaction) -> PlanHeader:
        """Plan what the store itself recorded, views too; nothing is read of the corpus."""
        snapshot = transaction.opened
        root = snapshot.data_root or Path()
        manifests = {split: snapshot.manifest(split, root) for split in snapshot.splits}
        rows = {split: (manifest, np.arange(len(manifest.utterances))) for split, manifest in manifests.items()}
        base = [header.name for header in transaction.active]
        plan = plan_utterances("compact", base, snapshot.identity, rows, self.utterances_per_shard)
        transaction.publish(plan, None)
        return plan.header

    def _refuse_full_disk(self, needed: int) -> None:
        free = self.storage.free_bytes()
        if free is not None and free < needed:
            raise StoreError(
                f"{self.storage.name}: the new shards take about {readable_bytes(needed)} beside the old ones, and "
                f"{readable_bytes(free)} are free; make room, then compact"
            )

    def _refuse_unready(self, transaction: Transaction) -> None:
        pending = transaction.pending
        if pending is not None and pending.kind == "replace":
            raise StoreError(
                f"{self.storage.name}: an --overwrite is in progress ({pending.name}); finish that first, with the "
                "same command, then compact"
            )
        left = transaction.unfinished(self._source_headers(transaction))
        if left:
            raise StoreError(
                f"{self.storage.name}: {counted(len(left), 'planned shard')} not built yet (e.g. {left[0].shard}); run "
                "build-shards without --compact first, then compact"
            )


class _QuietBar(Bar):
    """Failures are copied like embeddings: the build has named them."""

    def __call__(self, event: Event) -> None:
        super().__call__(Stored(event.split, event.key) if isinstance(event, NotStored) else event)


def _pending(transaction: Transaction) -> PlanHeader | None:
    """The plan of a compaction in progress."""
    pending = transaction.pending
    return pending if pending is not None and pending.kind == "compact" else None


def _entries(snapshot: Snapshot, headers: Sequence[PlanHeader]) -> list[SplitEntries]:
    splits = sorted({split for header in headers for split in header.shards})
    return [snapshot.entries_of(headers, split, COUNTED_COLUMNS) for split in splits]


def _tar_bytes(found: Sequence[SplitEntries]) -> int:
    return sum(record.tar_size for part in found for record in part.shards)


def _newest_bytes(entries: SplitEntries) -> float:
    """About what the tars of a split would take with their newest entries alone."""
    stored = entries.entries["error"].null_count
    return float(sum(record.tar_size for record in entries.shards) * len(entries.stored_rows) / max(stored, 1))


def abandon(storage: Storage, keep_replaced_days: float | None) -> str | None:
    """Delete the unfinished output of an interrupted --overwrite or --compact (build-shards --abandon).

    Returns:
        The plan that was abandoned; None where none was in progress.

    Raises:
        StoreError: It is not a store, or a build is writing to it.
    """
    read_record(storage)  # says that there is no store, before a folder is made for it
    with open_transaction(storage, keep_replaced_days) as transaction:
        name = transaction.abandon()
        transaction.conclude()
    return name
