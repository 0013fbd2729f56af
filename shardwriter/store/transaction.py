"""The one way in which a store changes: open, clean, publish a plan, run its tasks, commit.

`extend`, `replace` and `compact` differ in which plans they retire, and in nothing else. What store.json names belongs
to the store. A plan that it does not name, and whose base it does, was left by a build that died: it is garbage, with
its shards, and is deleted when the next build opens the store. So an interruption at any moment leaves a whole store,
and the same command resumes. All other files are somebody's, whatever their names, and stay.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from iianet.errors import StoreError
from iianet.wording import counted
from shardwriter.format.index import INDEX_SCHEMA, encode_index
from shardwriter.format.names import (
    CARD_FILE,
    INDEX_SUFFIX,
    STORE_FILE,
    index_name,
    is_split,
    merged_index_name,
    parse_plan_name,
    parse_shard,
    plan_id_of,
    plan_name,
)
from shardwriter.format.plan import Plan, PlanHeader, ShardTask, encode_plan
from shardwriter.format.record import Identity, StoreRecord
from shardwriter.storage.storage import Storage
from shardwriter.store.card import card_text, is_written_by_us
from shardwriter.store.entries import SplitEntries, read_index
from shardwriter.store.snapshot import Snapshot, is_store, read_header

logger = logging.getLogger(__name__)

COUNTED_COLUMNS = ("key", "frames", "error")

DAY_SECONDS = 86_400
MOST_CARD_BYTES = 1 << 20
"""A card of ours is far shorter."""

RunTasks = Callable[[Sequence[ShardTask]], None]


class Transaction:
    """A store that this process may change; made by `open_transaction`.

    Attributes:
        storage: Where it lies.
        snapshot: The store as it is now; None where there is none yet.
    """

    def __init__(self, storage: Storage, keep_replaced_days: float | None) -> None:
        self.storage = storage
        self._keep_replaced_days = storage.keep_replaced_days if keep_replaced_days is None else keep_replaced_days
        self.snapshot: Snapshot | None = None

    @property
    def opened(self) -> Snapshot:
        """The store as it is now, where there is one."""
        assert self.snapshot is not None
        return self.snapshot

    @property
    def active(self) -> list[PlanHeader]:
        """The active plans, oldest first."""
        return self.snapshot.active if self.snapshot else []

    @property
    def pending(self) -> PlanHeader | None:
        """The plan of an --overwrite or --compact that is in progress."""
        return self.snapshot.pending if self.snapshot else None

    def open(self) -> None:
        """Read the store, publish what an earlier run wrote and did not publish, and delete garbage.

        Raises:
            StoreError: It is damaged; or there are shards and no store.json, which was lost then.
        """
        if not is_store(self.storage):
            self._refuse_lost_record()
            self.storage.publish_staged(lambda _: False)
            return
        self.snapshot = Snapshot.open(self.storage, hold=False)
        self._delete_garbage()
        published = self.storage.publish_staged(self._is_planned)
        if published:
            logger.info("%s: published %d shards which an earlier run wrote", self.storage.name, len(published))
            self.snapshot = self.opened.listed_again()
        self.delete_retired()

    def publish(self, plan: Plan, data_root: str | None) -> None:
        """Publish a plan: one that extends the store is active at once, others are pending until they are complete."""
        record = self.snapshot.record if self.snapshot else None
        header = plan.header
        self.storage.write(header.name, encode_plan(plan))
        if header.kind == "extend":
            before = record or StoreRecord(identity=header.identity, data_root=data_root, plans=())
            self._commit(replace(before, data_root=data_root, plans=(*before.plans, header.name)), header)
        else:
            assert record is not None and record.pending is None
            self._commit(replace(record, pending=header.name), header)

    def announce(self, plan: Plan) -> None:
        """Write a plan whose shards come before it is active, so that they are known for ours if they stay alone."""
        self.storage.write(plan.header.name, encode_plan(plan))

    def create(self, identity: Identity, data_root: str | None) -> None:
        """Make a store that holds nothing yet."""
        self._commit(StoreRecord(identity=identity, data_root=data_root, plans=()))

    def move(self, data_root: str) -> None:
        """Record that the corpus lies in another folder now."""
        record = self.opened.record
        if record.data_root != data_root:
            logger.info("%s: data_root was %s, and is %s from now on", self.storage.name, record.data_root, data_root)
            self._commit(replace(record, data_root=data_root))

    def unfinished(self, headers: Sequence[PlanHeader], splits: Sequence[str] | None = None) -> list[ShardTask]:
        """Tasks of some plans, and splits, without a complete shard."""
        tasks: list[ShardTask] = []
        for header in headers:
            wanted = [split for split in header.splits if splits is None or split in splits]
            left = {shard for split in wanted for shard in self._entries(headers, split).incomplete}
            if left.intersection(shard for split in wanted for shard in header.shard_names(split)):
                plan = self.opened.plan(header)
                tasks += [task for task in plan.tasks(wanted) if task.shard in left]
        return tasks

    def run(self, tasks: Sequence[ShardTask], run_tasks: RunTasks) -> None:
        """Write the shards of tasks, by whoever `run_tasks` says."""
        if not tasks:
            return
        self.prepare(tasks)
        run_tasks(tasks)
        self.refresh()

    def prepare(self, tasks: Sequence[ShardTask]) -> None:
        """Delete what would be untrue while shards are written again: their indexes, and merged ones, which list the
        shards of active plans alone."""
        own, active = {index_name(task.shard): task.split for task in tasks}, {header.id for header in self.active}
        merged = {merged_index_name(split) for name, split in own.items() if plan_id_of(name) in active}
        self._delete(name for name in (*own, *merged) if name in self.opened.files)

    def refresh(self) -> None:
        """See what tasks have written."""
        self.snapshot = self.opened.listed_again()

    def is_complete(self, header: PlanHeader) -> bool:
        """Whether all shards of a plan are complete."""
        return not any(self._entries([header], split).incomplete for split in header.splits)

    def holds_anything(self, header: PlanHeader) -> bool:
        """Whether a plan has stored anything."""
        return any(len(self._entries([header], split).stored_rows) for split in header.splits)

    def switch(self, data_root: str | None) -> None:
        """Make the pending plan, which is complete, active in place of those that it replaces.

        A compaction replaces what it has copied, so later additions stay; an --overwrite replaces everything.
        """
        header = self.pending
        assert header is not None and self.is_complete(header)
        record = self.opened.record
        replaced = header.base if header.kind == "compact" else record.plans
        kept = [name for name in record.plans if name not in replaced]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        retired = {**record.retired, **dict.fromkeys(replaced, now)}
        plans = (header.name, *kept)
        self._commit(StoreRecord(identity=header.identity, data_root=data_root, plans=plans, retired=retired))
        self.delete_retired()

    def abandon(self) -> str | None:
        """Delete the pending plan and its shards: nobody reads them. Returns its name; None where there is none."""
        record = self.opened.record
        if (name := record.pending) is None:
            return None
        self._delete(other for other in self.opened.files if plan_id_of(other) == plan_id_of(name))
        self._commit(replace(record, pending=None))
        return name

    def delete_retired(self) -> None:
        """Delete replaced shards, unless they are to be kept, or a training that began with them reads them.

        In the order in which they were replaced: who holds a plan may read all that were replaced later, too.
        """
        if self.snapshot is None:
            return
        why, retired = "", dict(self.snapshot.record.retired)
        for name in list(retired):
            if not self._is_due(retired[name]):
                why = self._words_of_date(retired)
                break
            with self.storage.readers(name) as reason:
                if reason is not None:
                    why = f"{reason}; a build-shards deletes them when nobody reads them any more"
                    break
                del retired[name]
                self._delete(other for other in self.snapshot.files if plan_id_of(other) == plan_id_of(name))
        if len(retired) != len(self.snapshot.record.retired):
            self._commit(replace(self.snapshot.record, retired=retired))
        if retired:
            logger.info("%s: replaced shards stay (%s): %s", self.storage.name, ", ".join(retired), why)

    def conclude(self) -> dict[str, SplitEntries]:
        """Merge the indexes and write the card, where they are not up to date.

        Returns:
            The complete shards of each split.
        """
        found: dict[str, SplitEntries] = {}
        for split in self.opened.splits:
            entries = self.opened.split(split, COUNTED_COLUMNS)
            if not entries.is_merged and entries.shards:
                whole = self.opened.split(split)
                table = whole.entries.select(INDEX_SCHEMA.names)
                if not whole.damaged:
                    self.storage.write(merged_index_name(split), encode_index(table, whole.shards))
            found[split] = entries
        self._write_card(found)
        self._delete(
            name
            for name in self.opened.files
            if name.endswith(INDEX_SUFFIX)
            and is_split(split := name.removesuffix(INDEX_SUFFIX))
            and split not in found
            and self._is_index(name)
        )
        return found

    def _write_card(self, found: dict[str, SplitEntries]) -> None:
        counts = {split: len(entries.stored_rows) for split, entries in found.items()}
        plans = {split: _plans_with_tars(entries) for split, entries in found.items()}
        text = card_text(self.opened.identity, counts, plans).encode()
        before = b""
        if CARD_FILE in self.opened.files:
            with self.storage.open(CARD_FILE) as stream:
                before = stream.read(MOST_CARD_BYTES)
            if not is_written_by_us(before):
                logger.info("%s: was written by somebody else, so it stays", self.storage.where(CARD_FILE))
                return
        if text != before:
            self.storage.write(CARD_FILE, text)

    def _entries(self, headers: Sequence[PlanHeader], split: str) -> SplitEntries:
        return self.opened.entries_of(headers, split, COUNTED_COLUMNS)

    def _is_planned(self, shard: str) -> bool:
        parsed = parse_shard(shard)
        if parsed is None:
            return False
        headers = {header.id: header for header in self.opened.headers.values()}
        header = headers.get(parsed.plan_id)
        if header is None:  # a lost pending plan may be put back
            return parsed.plan_id in map(plan_id_of, self.opened.lost)
        return shard in header.shard_names(parsed.split)

    def _refuse_lost_record(self) -> None:
        shards = [name for name in self.storage.files() if parse_shard(name.rpartition(".")[0])]
        complete = [name for name in shards if name.endswith(INDEX_SUFFIX)]
        if shards:
            found = f"{len(complete)} complete shards" if complete else f"{len(shards)} tars"
            raise StoreError(
                f"{self.storage.name}: has no {STORE_FILE}, but {found}, which a build would "
                f"delete. Put {STORE_FILE} back, make it anew with inspect-shards {self.storage.name} --reindex, or "
                "delete the folder"
            )

    def _delete_garbage(self) -> None:
        """Delete what builds of this store have left that died: plans that the record does not name, with their shards.

        Other files may have names like ours, too, as the tars and plans of another store that were copied here.
        """
        named = {plan_id_of(name) for name in self.opened.record.named}
        strange = {name: found for name in self.opened.files if (found := plan_id_of(name)) not in (None, *named)}
        left = {plan_id for name, plan_id in strange.items() if parse_plan_name(name) and self._is_left(name)}
        if left:
            words = ", ".join(sorted(map(plan_name, filter(None, left))))
            logger.info("%s: deleting what a build that died has left: %s and their shards", self.storage.name, words)
        self._delete(name for name, plan_id in strange.items() if plan_id in left)
        if kept := sorted(name for name, plan_id in strange.items() if plan_id not in left):
            logger.warning(
                "%s: %s of no plan of this store, as %s: not used, and not deleted, for another store may miss them. "
                "Give them back to it, or delete them",
                self.storage.name,
                counted(len(kept), "file"),
                kept[0],
            )

    def _is_index(self, name: str) -> bool:
        try:
            read_index(self.storage, name, ["key"], self.opened.identity)
        except (FileNotFoundError, StoreError):
            return False
        return True

    def _is_left(self, name: str) -> bool:
        """Whether a plan was made for this store as it is now, and never became active."""
        try:
            header = read_header(self.storage, name)
        except StoreError:
            return False
        record = self.opened.record
        is_ours = bool(header.base) or header.identity == record.identity  # nothing else ties a first plan to a store
        return is_ours and set(header.base) <= set(record.named) and bool(header.base) == bool(record.named)

    def _delete(self, names: Iterable[str]) -> None:
        """Delete files: indexes first, since what has one is complete; plans last, so that the rest is found again."""
        chosen = list(names)
        indexes = [name for name in chosen if name.endswith(INDEX_SUFFIX)]
        plans = [name for name in chosen if plan_id_of(name) and not parse_shard(name.rpartition(".")[0])]
        others = [name for name in chosen if name not in {*indexes, *plans}]
        for part in (indexes, others, plans):
            self.storage.delete(part)
        if chosen and self.snapshot is not None:
            self.snapshot = self.snapshot.listed_again()

    def _commit(self, record: StoreRecord, *added: PlanHeader) -> None:
        before = self.snapshot
        version = self.storage.commit(STORE_FILE, record.to_bytes(), before.version if before else None)
        if before is None:
            before = Snapshot(storage=self.storage, record=record, version=version, files={}, headers={})
        self.snapshot = before.with_record(record, version, *added).listed_again()

    def _is_due(self, since: str) -> bool:
        age = datetime.now(UTC) - datetime.fromisoformat(since)
        return age.total_seconds() >= self._keep_replaced_days * DAY_SECONDS

    def _words_of_date(self, retired: dict[str, str]) -> str:
        if self._keep_replaced_days == float("inf"):
            return "trainings may still read them; a build-shards deletes them"
        until = max(map(datetime.fromisoformat, retired.values())) + timedelta(days=self._keep_replaced_days)
        return (
            f"trainings may still read them; a build-shards after {until:%Y-%m-%d %H:%M} UTC deletes them, or one with "
            "--set shardwriter.keep_replaced_days=0 now"
        )


@contextmanager
def open_transaction(
    storage: Storage, keep_replaced_days: float | None = None, *, patient: bool = False
) -> Iterator[Transaction]:
    """Hold a store against other builds, and read it.

    Args:
        storage: Where it lies, or will lie.
        keep_replaced_days: How long replaced shards stay at least (`shardwriter.keep_replaced_days`); None: as the
            storage needs it.
        patient: Wait for a build that holds the store for a moment.

    Raises:
        StoreError: Another build is writing to it, or it is damaged.
    """
    with storage.write_lock(patient=patient):
        transaction = Transaction(storage, keep_replaced_days)
        transaction.open()
        yield transaction


def _plans_with_tars(entries: SplitEntries) -> list[str]:
    """Ids of the plans that have at least one tar of a split, oldest first."""
    shards = [parse_shard(record.shard) for record in entries.shards if record.tar_size]
    return list(dict.fromkeys(shard.plan_id for shard in shards if shard))
