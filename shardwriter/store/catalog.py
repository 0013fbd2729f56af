"""What a store holds: its record, plans, shards, and the newest entry of every key."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import StoreError
from shardwriter.corpus.manifest import Manifest, arrange
from shardwriter.corpus.tables import last_of_each
from shardwriter.format.files import write_json
from shardwriter.format.index import ShardRecord, read_index
from shardwriter.format.names import (
    INDEX_SCHEMA,
    INDEX_SUFFIX,
    PLAN_SCHEMA,
    STORE_FILE,
    TAR_SUFFIX,
    StoreRecord,
    merged_index_name,
    split_position,
)
from shardwriter.format.plan import Plan, planned_rows, read_plan
from shardwriter.storage.hold import Hold, hold_for_reading
from shardwriter.storage.mirror import file_name, mirror_at, store_name, tar_sizes

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]


class Origin(NamedTuple):
    """The npz of an entry as it was read, and why it failed if it did: columns of `INDEX_SCHEMA`."""

    mouth: str | None
    source_size: int | None
    source_mtime_ns: int | None
    source_digest: str | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class SplitCatalog:
    """The complete shards of one split.

    Attributes:
        planned: Names of all planned shards, in the order of the plans.
        shards: Those that are complete.
        entries: Rows of `INDEX_SCHEMA`, or of some of its columns, shard by shard.
        shard_of_entry: Index into `shards` of each row, `(entries,)`.
    """

    planned: tuple[str, ...]
    shards: tuple[ShardRecord, ...]
    entries: pa.Table
    shard_of_entry: np.ndarray

    @cached_property
    def newest_rows(self) -> Rows:
        """Row of each key's newest entry, ascending: later plans win, since their shards come later."""
        if len({record.plan for record in self.shards}) <= 1:  # a plan has every key once
            return np.arange(len(self.entries))
        return last_of_each(self.entries["key"])

    @cached_property
    def newest(self) -> dict[str, int]:
        """The same, by key."""
        keys = self.entries["key"].take(pa.array(self.newest_rows)).to_pylist()
        return dict(zip(keys, self.newest_rows.tolist(), strict=True))

    @cached_property
    def origins(self) -> list[Origin]:
        """Where each row came from, `(entries,)`."""
        columns = [self.entries[name].to_pylist() for name in Origin._fields]
        return [Origin(*values) for values in zip(*columns, strict=True)]

    @cached_property
    def stored_rows(self) -> Rows:
        """Of `newest_rows` those that hold an embedding."""
        return self.newest_rows[~self._failed]

    @cached_property
    def failures(self) -> dict[str, str]:
        """Keys whose newest entry is a failure, and why."""
        failed = self.entries.select(["key", "error"]).take(pa.array(self.newest_rows[self._failed]))
        return dict(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))

    @property
    def _failed(self) -> npt.NDArray[np.bool_]:
        errors = self.entries["error"].take(pa.array(self.newest_rows))
        return np.asarray(pc.is_valid(errors), dtype=np.bool_)


def read_store_record(store: Path) -> StoreRecord:
    """Read store.json.

    Raises:
        StoreError: There is none, or it is not of this format and version.
    """
    path = store / STORE_FILE
    try:
        return StoreRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        if not store.exists():
            raise StoreError(f"{store}: not a store, there is no such folder; make one with build-shards") from error
        cure = f"inspect-shards {store} --reindex makes one of its tars" if any(store.glob(f"*{TAR_SUFFIX}")) else ""
        raise StoreError(
            f"{store_name(store)}: not a store, there is no {STORE_FILE} in it; {cure or 'make one with build-shards'}"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        anew = "" if mirror_at(store) else f", or delete it and make it anew with inspect-shards {store} --reindex"
        raise StoreError(f"{file_name(path)}: is damaged ({error}); put back what was there{anew}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{file_name(path)}: not a store of this format ({error}); it was made by another version"
        ) from error


def is_store(store: Path) -> bool:
    """Whether a folder holds a store, complete or begun."""
    return (store / STORE_FILE).is_file()


def write_store_record(store: Path, record: StoreRecord) -> None:
    """Publish store.json, which decides which plans count."""
    write_json(store / STORE_FILE, record.to_json())


@dataclass(frozen=True)
class Catalog:
    """A store as it was when opened: its record, its plans that count, and per split what is complete."""

    store: Path
    record: StoreRecord
    plans: tuple[Plan, ...]
    hold: Hold | None = field(default=None, compare=False)

    @classmethod
    def open_to_read(cls, store: Path, columns: Sequence[str] = tuple(PLAN_SCHEMA.names)) -> "Catalog":
        """The same as `open`, and what it holds stays there as long as the catalog or a copy of its `hold` lives."""
        while True:
            record = read_store_record(store)
            hold = hold_for_reading(store / record.plans[0]) if record.plans else None
            try:
                opened = cls._of(store, record, columns, hold)
            except StoreError:
                if read_store_record(store).plans == record.plans:
                    raise
                continue
            if read_store_record(store).plans == record.plans:  # else what we hold may be deleted by now
                return opened

    @classmethod
    def open(cls, store: Path, columns: Sequence[str] = tuple(PLAN_SCHEMA.names)) -> "Catalog":
        """Open a store, with all columns of its plans or some. Raises StoreError where it is none or is damaged."""
        return cls._of(store, read_store_record(store), columns)

    @classmethod
    def _of(cls, store: Path, record: StoreRecord, columns: Sequence[str], hold: Hold | None = None) -> "Catalog":
        return cls(store, record, tuple(read_plan(store, name, columns) for name in record.plans), hold)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are planned, and views of them."""
        return tuple(splits_of(self.plans))

    def split(self, split: str, columns: Sequence[str] | None = None) -> SplitCatalog:
        """The complete shards of a split, from the merged index where it is up to date; all columns, or some."""
        return complete_shards(self.store, self.plans, split, columns)

    def manifest(self, split: str, data_root: Path | None = None, *, complete: bool = False) -> Manifest:
        """The split's manifest as its plans recorded it, for machines that do not hold the corpus' own.

        Args:
            split: Of the store.
            data_root: Where its paths start; by default as the store records it.
            complete: Take only what complete shards hold, as they hold it.

        Raises:
            StoreError: The store does not say where its paths start, and `data_root` does not either.
        """
        root = data_root or (Path(self.record.data_root) if self.record.data_root else None)
        if root is None:
            raise StoreError(f"{self.store}: records no data_root, so its audio cannot be found; give --data_root")
        plans = [read_plan(self.store, plan.name) for plan in self.plans]  # with the columns that opening left out
        tables = [plan.table.filter(pc.equal(plan.table["split"], split)) for plan in plans]
        planned = pa.concat_tables(tables).combine_chunks() if tables else PLAN_SCHEMA.empty_table()
        if complete:
            shards = pa.array([record.shard for record in self.split(split, ["key"]).shards], type=pa.string())
            planned = planned.filter(pc.is_in(planned["shard"], value_set=shards))
        return arrange(split, root, *planned_rows(planned.take(last_of_each(planned["key"]))))


def splits_of(plans: Sequence[Plan]) -> list[str]:
    """The splits of some plans, and views of them, in the order in which they are shown."""
    names = {split for plan in plans for split in plan.table["split"].unique().to_pylist()}
    return sorted(names, key=split_position)


def complete_shards(
    store: Path, plans: Sequence[Plan], split: str, columns: Sequence[str] | None = None
) -> SplitCatalog:
    """Read the indexes of a split's complete shards; all their columns, or some.

    A shard whose tar is gone or has another size than its index says does not count, with a warning: its utterances
    are missing, so training encodes them again and the next build writes the shard again.
    """
    plan_of = {task.shard: plan.name for plan in plans for task in plan.tasks([split])}
    planned = list(plan_of)
    present = {path.name for path in store.glob(f"{split}-*{INDEX_SUFFIX}")}
    complete = [shard for shard in planned if f"{shard}{INDEX_SUFFIX}" in present]
    tables, shards = _read_merged(store, split, complete, columns)
    if shards is None:
        tables, shards = _read_each(store, complete, columns)
    entries = pa.concat_tables(tables) if tables else INDEX_SCHEMA.empty_table().select(columns or INDEX_SCHEMA.names)
    counts = np.array([record.rows for record in shards], dtype=np.int64)
    behind = tar_sizes(store)
    whole = np.array(
        [_is_of_plan(store, record, plan_of) and _tar_is_whole(store, record, behind) for record in shards],
        dtype=np.bool_,
    )
    if not whole.all():
        entries = entries.filter(pa.array(np.repeat(whole, counts)))
        shards = [record for record, keep in zip(shards, whole, strict=True) if keep]
    return SplitCatalog(
        planned=tuple(planned),
        shards=tuple(shards),
        entries=entries.combine_chunks(),
        shard_of_entry=np.repeat(np.arange(len(shards)), counts[whole]),
    )


def _is_of_plan(store: Path, record: ShardRecord, plan_of: Mapping[str, str]) -> bool:
    """Whether a shard was written after the plan that lists it, and not after another that gave the same number."""
    if record.plan == plan_of[record.shard]:
        return True
    logger.warning(
        "%s: was written after %s, and %s lists it: its %d utterances count as missing. Run build-shards to write it "
        "again.",
        file_name(store / f"{record.shard}{INDEX_SUFFIX}"),
        record.plan,
        plan_of[record.shard],
        record.rows,
    )
    return False


def _tar_is_whole(store: Path, record: ShardRecord, behind: Mapping[str, int]) -> bool:
    path = store / f"{record.shard}{TAR_SUFFIX}"
    if record.tar_size == 0:
        return True
    size = path.stat().st_size if path.is_file() else behind.get(path.name)
    if size == record.tar_size:
        return True
    found = "is gone" if size is None else f"has {size:,} bytes"
    logger.warning(
        "%s %s, its index says %s bytes: its %d utterances count as missing. Run build-shards to write it again.",
        file_name(path),
        found,
        f"{record.tar_size:,}",
        record.rows,
    )
    return False


def _read_merged(
    store: Path, split: str, complete: Sequence[str], columns: Sequence[str] | None
) -> tuple[list[pa.Table], list[ShardRecord] | None]:
    """The merged index, where it says just what the shards' own would."""
    path = store / merged_index_name(split)
    if not path.is_file():
        return [], None
    try:
        table, records = read_index(path, columns)
    except StoreError as error:
        logger.warning("%s; it is derived, so the shards' own are read instead", error)
        return [], None
    if [record.shard for record in records] != list(complete):
        return [], None
    return [table], records


def _read_each(
    store: Path, complete: Sequence[str], columns: Sequence[str] | None
) -> tuple[list[pa.Table], list[ShardRecord]]:
    tables: list[pa.Table] = []
    shards: list[ShardRecord] = []
    for shard in complete:
        table, records = read_index(store / f"{shard}{INDEX_SUFFIX}", columns)
        tables.append(table)
        shards.extend(records)
    return tables, shards
