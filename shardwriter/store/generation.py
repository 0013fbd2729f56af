"""The plans of a store: which count, which will, and which are left from dead builds."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath
from typing import Any

from iianet.errors import StoreError
from shardwriter.build.work import Work
from shardwriter.corpus.manifest import Manifest
from shardwriter.format.names import (
    INDEX_SUFFIX,
    STORE_FILE,
    TAR_SUFFIX,
    Identity,
    StoreRecord,
    merged_index_name,
    plan_number,
    shard_number,
)
from shardwriter.format.plan import Plan, make_plan, read_plan, write_plan
from shardwriter.storage.hold import kept_from_readers
from shardwriter.storage.mirror import mirror_at, names_behind, store_name
from shardwriter.store.catalog import Catalog, is_store, splits_of, write_store_record

logger = logging.getLogger(__name__)

KEPT_BEHIND_URL_DAYS = 7.0
"""How long what was replaced stays where nobody can tell who reads it: longer than most trainings."""


@dataclass(kw_only=True)
class Generations:
    """The plans of a store during a build.

    Attributes:
        store: Their folder.
        record: Contents of store.json; None where it is not yet.
        active: Plans that count.
        replacement: A plan that will take their place once it is complete, if one was begun.
        compaction: Likewise, whose shards are copied from theirs.
        retired: Plans that counted once, whose shards may be read still.
        keep_replaced: Days that those stay at least; None: as long as they may be read.
        orphans: Plans that do not count and never will: of builds that died before or after they counted.
    """

    store: Path
    record: StoreRecord | None
    active: list[Plan] = field(default_factory=list)
    replacement: Plan | None = None
    compaction: Plan | None = None
    retired: list[Plan] = field(default_factory=list)
    keep_replaced: float | None = None
    orphans: list[Plan] = field(default_factory=list)
    _why_kept: str = ""

    @classmethod
    def open(cls, store: Path, keep_replaced: float | None = None) -> "Generations":
        """Read a store's plans; replaced ones are kept for so many days (`shardwriter.keep_replaced_days`)."""
        catalog = Catalog.open(store) if is_store(store) else None
        found = cls(
            store=store,
            record=catalog.record if catalog else None,
            active=list(catalog.plans) if catalog else [],
            keep_replaced=keep_replaced,
        )
        counting = found.record.plans if found.record else ()
        retired = found.record.retired if found.record else ()
        latest = max((plan.number for plan in found.active if plan.kind != "extend"), default=-1)
        for name in sorted(path.name for path in store.glob("plan-*.parquet")):
            if plan_number(name) is None or name in counting:
                continue
            try:
                plan = read_plan(store, name)
            except StoreError as error:  # it does not count, so nothing is lost with it
                logger.warning("%s; it does not count and is left alone, delete it", error)
                continue
            waits = plan.number > latest and plan.base == counting[: len(plan.base)]
            if name in retired:
                found.retired.append(plan)
            elif plan.kind == "replace" and waits:
                found.orphans += [found.replacement] if found.replacement else []
                found.replacement = plan
            elif plan.kind == "compact" and waits:
                found.orphans += [found.compaction] if found.compaction else []
                found.compaction = plan
            else:
                found.orphans.append(plan)
        found.retired.sort(key=lambda plan: list(retired).index(plan.name))
        return found

    def clean(self) -> None:
        """Delete what dead builds left, and what was replaced and is due; only the holder of the build lock may.

        Raises:
            StoreError: See `drop_orphans`.
        """
        self.drop_orphans()
        self.drop_retired()

    def drop_orphans(self) -> None:
        """Delete what dead builds left.

        Raises:
            StoreError: There are complete shards and no store.json: it was lost, for a build writes it before them.
        """
        if self.record is None:
            for plan in self.orphans:
                self._refuse_complete(plan)
        while self.orphans:
            self.drop(self.orphans.pop())

    def _refuse_complete(self, plan: Plan) -> None:
        complete = [shard for shard in plan.shards if (self.store / f"{shard}{INDEX_SUFFIX}").is_file()]
        if complete:
            raise StoreError(
                f"{self.store}: has no {STORE_FILE}, but {plan.name} with {len(complete)} complete shards, which a "
                f"build would delete. Put {STORE_FILE} back, make it anew with inspect-shards {self.store} --reindex, "
                "or delete the folder"
            )

    @property
    def uncounted(self) -> list[Plan]:
        """Plans that do not count yet, or any more, and are there for a reason."""
        return [*(plan for plan in (self.replacement, self.compaction) if plan), *self.retired]

    @property
    def identity(self) -> Identity | None:
        """Of the plans that count."""
        return self.record.identity if self.record else None

    def next_plan(self) -> int:
        """An unused plan number."""
        names = [*(path.name for path in self.store.glob("plan-*.parquet")), *names_behind(self.store)]
        numbers = map(plan_number, names)
        return max((number for number in numbers if number is not None), default=-1) + 1

    def next_shard(self, split: str) -> int:
        """An unused shard number: above every planned one and every file."""
        names = {shard for plan in (*self.active, *self.uncounted) for shard in plan.shards}
        names.update(path.stem for path in self.store.glob(f"{split}-*"))
        names.update(PurePath(name).stem for name in names_behind(self.store))  # of others, too
        numbers = [parsed[1] for name in names if (parsed := shard_number(name)) and parsed[0] == split]
        return max(numbers, default=-1) + 1

    def extend(self, work: Mapping[str, Work], identity: Identity, utterances_per_shard: int, data_root: Path) -> None:
        """Publish a plan of what is to be added, and make it count."""
        chosen = {split: (item.manifest, item.to_plan) for split, item in work.items() if item.to_plan}
        if not chosen and self.record is not None:
            if self.record.data_root != str(data_root):  # the corpus has moved
                self._count(self.record.identity, str(data_root))
            return
        plan = self._make("extend", chosen, identity, utterances_per_shard)
        write_plan(self.store, plan)
        self.active.append(plan)
        self._count(self.identity or identity, str(data_root))

    def replace(self, manifests: Mapping[str, Manifest], identity: Identity, utterances_per_shard: int) -> Plan:
        """Publish a plan of everything anew; it counts once it is complete."""
        chosen = {split: (manifest, range(len(manifest.utterances))) for split, manifest in manifests.items()}
        self.replacement = self._make("replace", chosen, identity, utterances_per_shard)
        write_plan(self.store, self.replacement)
        return self.replacement

    def compact(self, manifests: Mapping[str, Manifest], utterances_per_shard: int) -> Plan:
        """Publish a plan that copies what counts; it counts once it is complete."""
        assert self.record is not None
        chosen = {split: (manifest, range(len(manifest.utterances))) for split, manifest in manifests.items()}
        self.compaction = self._make("compact", chosen, self.record.identity, utterances_per_shard)
        write_plan(self.store, self.compaction)
        return self.compaction

    def abandon(self) -> None:
        """Delete what was begun to take the place of what counts, if anything was: nobody reads it."""
        for plan in (self.replacement, self.compaction):
            if plan is not None:
                self.drop(plan)
        self.replacement = self.compaction = None

    def switch(self, data_root: Path) -> None:
        """Make the complete replacement count, and delete what it replaces."""
        assert self.replacement is not None
        plan, self.replacement = self.replacement, None
        self.retired += self.active
        self.active = [plan]
        self._count(plan.identity, str(data_root))
        self.drop_retired()

    def switch_to_copies(self) -> None:
        """Make the complete compaction count instead of what it was copied from; what was added since stays."""
        assert self.record is not None and self.compaction is not None
        plan, self.compaction = self.compaction, None
        copied = len(plan.base)
        self.retired += self.active[:copied]
        self.active = [plan, *self.active[copied:]]
        self._count(self.record.identity, self.record.data_root)
        self.drop_retired()

    def drop_retired(self) -> None:
        """Delete what counted once, unless it is to be kept, or a training that began with it reads it.

        In the order in which it was replaced: who holds a plan may read all that were replaced later, too.
        """
        if self.record is None:
            return
        self._why_kept = ""
        while self.retired and not self._why_kept:
            plan = self.retired[0]
            if not self._is_due(plan):
                self._why_kept = self._words_of_date()
                break
            with kept_from_readers(self.store / plan.name) as reason:
                if reason is None:
                    self.drop(self.retired.pop(0))
                else:
                    self._why_kept = f"{reason}; a build-shards deletes it when nobody reads it any more"
        if len(self.retired) != len(self.record.retired):  # also where an earlier deletion was interrupted at its end
            self._count(self.record.identity, self.record.data_root)
        if self.retired:
            logger.info("%s: %s", store_name(self.store), self.words_of_retired())

    def words_of_retired(self) -> str:
        """Why what was replaced is there, and how it goes."""
        names = ", ".join(plan.name for plan in self.retired)
        return f"what was replaced stays ({names}): {self._why_kept}"

    def _words_of_date(self) -> str:
        until = max(self._replaced(plan) for plan in self.retired) + self._kept_for
        return (
            f"trainings may still read it; a build-shards after {until:%Y-%m-%d %H:%M} UTC deletes it, or one with "
            "--set shardwriter.keep_replaced_days=0 now"
        )

    def _is_due(self, plan: Plan) -> bool:
        return datetime.now(UTC) - self._replaced(plan) >= self._kept_for

    @property
    def _kept_for(self) -> timedelta:
        if self.keep_replaced is not None:
            return timedelta(days=self.keep_replaced)
        return timedelta(days=KEPT_BEHIND_URL_DAYS if mirror_at(self.store) else 0)

    def _replaced(self, plan: Plan) -> datetime:
        assert self.record is not None
        return datetime.fromisoformat(self.record.retired[plan.name])

    def drop(self, plan: Plan) -> None:
        """Delete a plan that does not count, and its shards; merged indexes are derived, and would name them."""
        for split in splits_of([plan]):
            (self.store / merged_index_name(split)).unlink(missing_ok=True)
        for shard in plan.shards:
            for suffix in (INDEX_SUFFIX, TAR_SUFFIX):  # the index first: what has an index is complete
                (self.store / f"{shard}{suffix}").unlink(missing_ok=True)
        (self.store / plan.name).unlink(missing_ok=True)

    def _make(
        self,
        kind: Any,
        chosen: Mapping[str, tuple[Manifest, Sequence[int]]],
        identity: Identity,
        utterances_per_shard: int,
    ) -> Plan:
        return make_plan(
            number=self.next_plan(),
            kind=kind,
            base=[plan.name for plan in self.active],
            identity=identity,
            work=chosen,
            utterances_per_shard=utterances_per_shard,
            first_shard={split: self.next_shard(split) for split in chosen},
        )

    def _count(self, identity: Identity, data_root: str | None) -> None:
        earlier, now = self.record.retired if self.record else {}, datetime.now(UTC).isoformat(timespec="seconds")
        self.record = StoreRecord(
            identity=identity,
            data_root=data_root,
            plans=tuple(plan.name for plan in self.active),
            retired={plan.name: earlier.get(plan.name, now) for plan in self.retired},
        )
        write_store_record(self.store, self.record)


def is_begun_with(store: Path, identity: Identity) -> bool:
    """Whether an --overwrite with this identity waits to be continued."""
    waiting = Generations.open(store).replacement
    return waiting is not None and waiting.identity == identity
