"""Decide what a build has to encode, and publish it as a plan."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from tqdm import tqdm

from configs.errors import StoreError
from shardwriter.catalog import Catalog, Origin, SplitCatalog, is_store, splits_of, write_store_record
from shardwriter.encode import source_state
from shardwriter.format import (
    INDEX_SUFFIX,
    SPLITS,
    TAR_SUFFIX,
    Identity,
    StoreRecord,
    merged_index_name,
    parse_view_split,
    plan_number,
    shard_number,
    view_split,
)
from shardwriter.manifest import Manifest
from shardwriter.plan import Plan, make_plan, read_plan, write_plan

logger = logging.getLogger(__name__)

STAT_THREADS = 16
"""Threads that ask for file sizes and times: it is waiting, not work, above all on network file systems."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Which utterances of a split a build encodes, and why, as indices into its manifest, in hash order.

    `resumed` are those of unfinished tasks of earlier plans; `left_out` says how many a limit leaves out.
    """

    manifest: Manifest
    new: Sequence[int] = ()
    changed: Sequence[int] = ()
    retried: Sequence[int] = ()
    resumed: Sequence[int] = ()
    left_out: int = 0

    @property
    def to_plan(self) -> list[int]:
        """Those that no unfinished task of an earlier plan has."""
        return sorted([*self.new, *self.changed, *self.retried])


def find_work(
    manifest: Manifest,
    plans: Sequence[Plan],
    catalog: SplitCatalog,
    *,
    limit: int | None,
    verify_sources: bool,
    retry_failed: bool,
) -> Work:
    """Compare a manifest with what its split of a store holds.

    An utterance is changed where the size or time of its npz differ from the recorded ones and then its digest does;
    `verify_sources` digests them all. One that failed is tried again where its npz changed, or with `retry_failed`.
    """
    complete = {record.shard for record in catalog.shards}
    unfinished: set[str] = set()
    for plan in plans:
        for task in plan.tasks([manifest.split]):
            keys = task.rows["key"].to_pylist()
            unfinished.difference_update(keys)
            if task.shard not in complete:
                unfinished.update(keys)
    _refuse_other_paths(manifest, plans)
    chosen = range(len(manifest.utterances))[:limit]
    keys = [manifest.utterances[index].key for index in chosen]
    resumed = [index for index, key in zip(chosen, keys, strict=True) if key in unfinished]
    known = [index for index, key in zip(chosen, keys, strict=True) if key not in unfinished and key in catalog.newest]
    new = [
        index for index, key in zip(chosen, keys, strict=True) if key not in unfinished and key not in catalog.newest
    ]
    stale = stale_utterances(manifest, known, catalog, verify_sources=verify_sources)
    failed = {index for index in known if _origin(catalog, manifest, index).error is not None}
    return Work(
        manifest=manifest,
        new=new,
        changed=[index for index in stale if index not in failed],
        retried=sorted(failed) if retry_failed else [index for index in stale if index in failed],
        resumed=resumed,
        left_out=len(manifest.utterances) - len(chosen),
    )


def _refuse_other_paths(manifest: Manifest, plans: Sequence[Plan]) -> None:
    """Raise StoreError where the store knows an utterance under another path: then data_root is not what it was."""
    asked = {utterance.key: utterance.mouth for utterance in manifest.utterances}
    _, view = parse_view_split(manifest.split)
    splits = pa.array([view_split(split, view) for split in SPLITS])
    for plan in plans:
        rows = plan.table.select(["key", "mouth"]).filter(pc.is_in(plan.table["split"], value_set=splits))
        for key, mouth in zip(rows["key"].to_pylist(), rows["mouth"].to_pylist(), strict=True):
            if asked.get(key, mouth) != mouth:
                raise StoreError(
                    f"{manifest.split}: {key} is {mouth} in the store's {plan.name} and {asked[key]} in the manifest, "
                    f"relative to data_root {manifest.data_root}. Give the --data_root that the store was built with "
                    "(or where that folder lies now), or another --shards folder for another corpus."
                )


def stale_utterances(
    manifest: Manifest, known: Sequence[int], catalog: SplitCatalog, *, verify_sources: bool = False
) -> list[int]:
    """Those of the stored `known` whose npz is no longer what was encoded. A vanished npz makes none stale."""

    vanished: list[str] = []

    def is_stale(index: int) -> bool:
        utterance = manifest.utterances[index]
        recorded = _origin(catalog, manifest, index)
        source = recorded.mouth or utterance.mouth  # not the mouth itself where its embedding was imported
        path = manifest.data_root / source
        now = source_state(path, source)
        if now.size is None:
            vanished.append(source)
            return False
        same = (now.size, now.mtime_ns) == (recorded.source_size, recorded.source_mtime_ns)
        if recorded.source_digest is None:  # it could not be read then, or came from no npz
            return recorded.error is not None and not same
        return (not same or verify_sources) and _digest(path) != recorded.source_digest

    with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat-npz") as pool:
        bar = tqdm(
            pool.map(is_stale, known),
            total=len(known),
            desc=f"checking {manifest.split}",
            unit="npz",
            delay=1.0,
            leave=False,
        )
        found = [index for index, stale in zip(known, bar, strict=True) if stale]
    if vanished:
        logger.warning(
            "%s: %d of %d stored utterances have no npz at %s any more (e.g. %s); their embeddings are kept",
            manifest.split,
            len(vanished),
            len(known),
            manifest.data_root,
            min(vanished),
        )
    return found


def _origin(catalog: SplitCatalog, manifest: Manifest, index: int) -> Origin:
    return catalog.origins[catalog.newest[manifest.utterances[index].key]]


def _digest(path: Path) -> str | None:
    try:
        return str(xxhash.xxh3_64_hexdigest(path.read_bytes()))
    except OSError:
        return None


@dataclass(kw_only=True)
class Generations:
    """The plans of a store during a build.

    Attributes:
        store: Their folder.
        record: Contents of store.json; None where it is not yet.
        active: Plans that count.
        replacement: A plan that will take their place once it is complete, if one was begun.
        orphans: Plans that do not count and never will: of builds that died before or after they counted.
    """

    store: Path
    record: StoreRecord | None
    active: list[Plan] = field(default_factory=list)
    replacement: Plan | None = None
    orphans: list[Plan] = field(default_factory=list)

    @classmethod
    def open(cls, store: Path) -> "Generations":
        """Read a store's plans."""
        catalog = Catalog.open(store) if is_store(store) else None
        found = cls(
            store=store, record=catalog.record if catalog else None, active=list(catalog.plans) if catalog else []
        )
        counting = found.record.plans if found.record else ()
        for name in sorted(path.name for path in store.glob("plan-*.parquet")):
            if plan_number(name) is None or name in counting:
                continue
            plan = read_plan(store, name)
            if plan.kind == "replace" and plan.base == counting[: len(plan.base)]:
                found.replacement = plan
            else:
                found.orphans.append(plan)
        return found

    def clean(self) -> None:
        """Delete what dead builds left; only the holder of the build lock may."""
        while self.orphans:
            self.drop(self.orphans.pop())

    @property
    def identity(self) -> Identity | None:
        """Of the plans that count."""
        return self.record.identity if self.record else None

    def next_plan(self) -> int:
        """An unused plan number."""
        numbers = [plan_number(path.name) for path in self.store.glob("plan-*.parquet")]
        return max((number for number in numbers if number is not None), default=-1) + 1

    def next_shard(self, split: str) -> int:
        """An unused shard number: above every planned one and every file, so that no name ever means two contents."""
        plans = [*self.active, *([self.replacement] if self.replacement else [])]
        names = {shard for plan in plans for shard in plan.shards}
        names.update(path.stem for path in self.store.glob(f"{split}-*"))
        numbers = [parsed[1] for name in names if (parsed := shard_number(name)) and parsed[0] == split]
        return max(numbers, default=-1) + 1

    def extend(self, work: Mapping[str, Work], identity: Identity, utterances_per_shard: int, data_root: Path) -> None:
        """Publish a plan of what is to be added, and make it count."""
        chosen = {split: (item.manifest, item.to_plan) for split, item in work.items() if item.to_plan}
        if not chosen and self.record is not None:
            if self.record.data_root != str(data_root):  # the corpus has moved
                self._count(identity, str(data_root))
            return
        plan = self._make("extend", chosen, identity, utterances_per_shard)
        write_plan(self.store, plan)
        self.active.append(plan)
        self._count(identity, str(data_root))

    def replace(self, manifests: Mapping[str, Manifest], identity: Identity, utterances_per_shard: int) -> Plan:
        """Publish a plan of everything anew; it counts once it is complete."""
        chosen = {split: (manifest, range(len(manifest.utterances))) for split, manifest in manifests.items()}
        self.replacement = self._make("replace", chosen, identity, utterances_per_shard)
        write_plan(self.store, self.replacement)
        return self.replacement

    def abandon(self) -> None:
        """Delete the replacement."""
        assert self.replacement is not None
        self.drop(self.replacement)
        self.replacement = None

    def switch(self, data_root: Path) -> None:
        """Make the complete replacement count, and delete what it replaces."""
        assert self.replacement is not None
        old, self.active, plan = self.active, [self.replacement], self.replacement
        self.replacement = None
        self._count(plan.identity, str(data_root))
        for superseded in old:
            self.drop(superseded)

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
        self.record = StoreRecord(
            identity=identity, data_root=data_root, plans=tuple(plan.name for plan in self.active)
        )
        write_store_record(self.store, self.record)
