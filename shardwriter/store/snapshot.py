"""A store as it was when opened: its record, its plans, its files, and per split the newest entry of every key."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import StoreError
from shardwriter.corpus.manifest_data import Manifest, arrange, last_of_each
from shardwriter.corpus.planning import planned_manifest_tables
from shardwriter.format.index import INDEX_SCHEMA, ShardRecord, decode_index
from shardwriter.format.names import (
    STORE_FILE,
    TAR_SUFFIX,
    index_name,
    merged_index_name,
    parse_shard,
    sorted_splits,
    tar_name,
)
from shardwriter.format.plan import PLAN_SCHEMA, Plan, PlanHeader, decode_header, decode_rows
from shardwriter.format.record import Identity, OtherVersion, StoreRecord
from shardwriter.storage.storage import Hold, Listed, Storage

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
OPENINGS = 10
"""How often a store is opened again because a build changed it meanwhile."""
ALL_COLUMNS = tuple(PLAN_SCHEMA.names)


@dataclass(frozen=True, kw_only=True)
class SplitEntries:
    """The complete shards of one split.

    Attributes:
        planned: Names of all planned shards, in the order of the plans.
        shards: Those that are complete.
        damaged: Those that have an index, but whose tar is gone or has another size.
        lost: Keys whose newest entry is in a damaged shard.
        entries: Rows of `INDEX_SCHEMA`, or of some of its columns, shard by shard.
        shard_of_entry: Index into `shards` of each row, `(entries,)`.
        is_merged: Whether they were read from an up-to-date merged index.
    """

    planned: tuple[str, ...]
    shards: tuple[ShardRecord, ...]
    damaged: tuple[str, ...]
    lost: pa.Array
    entries: pa.Table
    shard_of_entry: Rows
    is_merged: bool

    @cached_property
    def newest_rows(self) -> Rows:
        """Row of each key's newest entry, ascending: later plans win, since their shards come later.

        A lost key has none: an older embedding of it is of another mouth.
        """
        plans = {name.plan_id for record in self.shards if (name := parse_shard(record.shard))}
        if len(plans) <= 1 and not len(self.lost):  # a plan has every key once
            return np.arange(len(self.entries))
        rows = last_of_each(self.entries["key"])
        is_lost = pc.is_in(self.entries["key"].take(pa.array(rows)), value_set=self.lost)
        return rows[~np.asarray(is_lost, dtype=np.bool_)]

    @cached_property
    def newest(self) -> dict[str, int]:
        """The same, by key."""
        keys = self.entries["key"].take(pa.array(self.newest_rows)).to_pylist()
        return dict(zip(keys, self.newest_rows.tolist(), strict=True))

    @cached_property
    def stored_rows(self) -> Rows:
        """Rows of `newest_rows` that hold an embedding."""
        return self.newest_rows[~self._failed]

    @cached_property
    def failures(self) -> dict[str, str]:
        """Keys whose newest entry is a failure, and why."""
        failed = self.entries.select(["key", "error"]).take(pa.array(self.newest_rows[self._failed]))
        return dict(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))

    @property
    def complete(self) -> set[str]:
        """Names of the complete shards."""
        return {record.shard for record in self.shards}

    @property
    def incomplete(self) -> list[str]:
        """Names of the planned shards that are not complete."""
        complete = self.complete
        return [shard for shard in self.planned if shard not in complete]

    @cached_property
    def _failed(self) -> npt.NDArray[np.bool_]:
        errors = self.entries["error"].take(pa.array(self.newest_rows))
        return np.asarray(pc.is_valid(errors), dtype=np.bool_)


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A store as it was when opened.

    Attributes:
        storage: Where it lies.
        record: Contents of store.json.
        version: Of store.json.
        files: All files.
        headers: Of all plans that the record names and that could be read, by file name.
        hold: Keeps the shards that it names, as long as it or a copy of it lives.
    """

    storage: Storage
    record: StoreRecord
    version: str
    files: Mapping[str, Listed]
    headers: Mapping[str, PlanHeader]
    hold: Hold | None = None
    _plans: dict[tuple[str, tuple[str, ...]], Plan] = field(default_factory=dict, repr=False)
    _entries: dict[tuple[str, str], SplitEntries] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, storage: Storage, *, hold: bool = True) -> "Snapshot":
        """Open a store; with `hold`, what it names stays there as long as the snapshot or a copy of its hold lives.

        Raises:
            StoreError: There is none, or it is damaged.
        """
        for _ in range(OPENINGS):
            files = storage.files()
            record = read_record(storage)
            version = files[STORE_FILE].version if STORE_FILE in files else storage.version(STORE_FILE)
            held = storage.hold(record.plans[0]) if hold and record.plans else None
            try:
                headers = _read_headers(storage, record)
            except StoreError:
                if storage.version(STORE_FILE) == version:
                    raise
                continue
            if version is not None and storage.version(STORE_FILE) == version:
                return cls(storage=storage, record=record, version=version, files=files, headers=headers, hold=held)
        raise StoreError(f"{storage.name}: changes again and again while it is opened; try again when it is built")

    def with_record(self, record: StoreRecord, version: str, *added: PlanHeader) -> "Snapshot":
        """The same store after its record was replaced."""
        headers = {**self.headers, **{header.name: header for header in added}}
        kept = {name: header for name, header in headers.items() if name in record.named}
        return replace(self, record=record, version=version, headers=kept, _plans=dict(self._plans), _entries={})

    def listed_again(self) -> "Snapshot":
        """The same store with the files that are there now."""
        return replace(self, files=self.storage.files(), _plans=dict(self._plans), _entries={})

    @property
    def identity(self) -> Identity:
        """What the embeddings were made with."""
        return self.record.identity

    @property
    def data_root(self) -> Path | None:
        """Folder that the store's paths are relative to, where it says so."""
        return Path(self.record.data_root) if self.record.data_root is not None else None

    @property
    def active(self) -> list[PlanHeader]:
        """The active plans, oldest first."""
        return [self.headers[name] for name in self.record.plans]

    @property
    def pending(self) -> PlanHeader | None:
        """The plan that replaces active ones once it is complete, if there is one."""
        return self.headers.get(self.record.pending) if self.record.pending else None

    @property
    def retired(self) -> list[PlanHeader]:
        """Plans that were replaced, and whose shards are still there, oldest first."""
        return [self.headers[name] for name in self.record.retired if name in self.headers]

    @property
    def splits(self) -> list[str]:
        """The splits that are planned, and views of them."""
        return sorted_splits(split for header in self.active for split in header.shards)

    def plan(self, header: PlanHeader, columns: Sequence[str] = ALL_COLUMNS) -> Plan:
        """A plan with its rows, all of their columns or some. Raises StoreError where it cannot be read."""
        key = (header.name, tuple(columns))
        if key not in self._plans:
            where = self.storage.where(header.name)
            try:
                with self.storage.open(header.name) as stream:
                    self._plans[key] = Plan(header=header, table=decode_rows(stream, where, columns))
            except FileNotFoundError as error:
                raise _missing_plan(self.storage, header.name) from error
        return self._plans[key]

    def planned_rows(self, split: str, columns: Sequence[str] = ALL_COLUMNS) -> pa.Table:
        """Rows of a split in the active plans, oldest first."""
        wanted = columns if "split" in columns else ("split", *columns)
        tables = [self.plan(header, wanted).table for header in self.active if split in header.shards]
        parts = [table.filter(pc.equal(table["split"], split)) for table in (PLAN_SCHEMA.empty_table(), *tables)]
        return pa.concat_tables(part.select(list(columns)) for part in parts)

    def split(self, split: str, columns: Sequence[str] | None = None) -> SplitEntries:
        """The complete shards of a split of the active plans, with all columns of their entries, or some at least."""
        return self.entries_of(self.active, split, columns)

    def entries_of(
        self, headers: Sequence[PlanHeader], split: str, columns: Sequence[str] | None = None
    ) -> SplitEntries:
        """The complete shards of a split of some plans, likewise.

        A shard whose tar is gone or has another size than its index says does not count, with a warning: its
        utterances are missing, so training encodes them again and the next build writes the shard again.
        """
        key = (split, " ".join(header.id for header in headers))
        wanted = INDEX_SCHEMA.names if columns is None else list(dict.fromkeys(["key", *columns]))
        known = self._entries.get(key)
        if known is None or not set(wanted) <= set(known.entries.schema.names):
            self._entries[key] = known = _read_entries(self, headers, split, wanted)
        return known

    def manifest(self, split: str, data_root: Path | None = None, *, complete: bool = False) -> Manifest:
        """The split's manifest as its plans recorded it, for machines that do not hold the corpus' own.

        Args:
            split: Of the store.
            data_root: Where its paths start; by default as the store records it.
            complete: Take only what complete shards hold, as they hold it.

        Raises:
            StoreError: Neither the store nor `data_root` says where its paths start.
        """
        root = data_root or self.data_root
        if root is None:
            raise StoreError(
                f"{self.storage.name}: records no data_root, so its audio cannot be found; give --data_root"
            )
        planned = self.planned_rows(split).combine_chunks()
        if complete:
            done = self.split(split, ["key"]).complete
            headers = [header for header in self.active if split in header.shards]
            tasks = [task for header in headers for task in self.plan(header).tasks([split])]
            flags = [task.shard in done for task in tasks for _ in range(len(task.rows))]
            planned = planned.filter(pa.array(flags, type=pa.bool_()))
        return arrange(split, root, *planned_manifest_tables(planned.take(last_of_each(planned["key"]))))


def is_store(storage: Storage) -> bool:
    """Whether a place holds a store, complete or begun."""
    return storage.version(STORE_FILE) is not None


def read_record(storage: Storage) -> StoreRecord:
    """Read store.json.

    Raises:
        StoreError: There is none, or it is not of this format and version.
    """
    where = storage.where(STORE_FILE)
    try:
        with storage.open(STORE_FILE) as stream:
            return StoreRecord.from_bytes(stream.read())
    except (FileNotFoundError, NotADirectoryError) as error:
        if not storage.exists():
            raise StoreError(
                f"{storage.name}: not a store, there is no such folder; make one with build-shards"
            ) from error
        tars = any(name.endswith(TAR_SUFFIX) for name in storage.files())
        cure = (
            f"inspect-shards {storage.name} --reindex makes one of its tars" if tars else "make one with build-shards"
        )
        raise StoreError(f"{storage.name}: not a store, there is no {STORE_FILE} in it; {cure}") from error
    except OtherVersion as error:
        raise StoreError(
            f"{storage.name}: was written in {error}. Stores are quick to build again and nothing else is lost: delete "
            "it, or choose another --shards, and run build-shards"
        ) from error
    except (UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{where}: is damaged, or not the record of a store ({type(error).__name__}: {error}); put back what was "
            f"there, or delete it and make it again with inspect-shards {storage.name} --reindex"
        ) from error
    except OSError as error:
        raise StoreError(f"{where}: cannot be read ({error.strerror or error})") from error


def _read_headers(storage: Storage, record: StoreRecord) -> dict[str, PlanHeader]:
    storage.prefetch(record.named)
    headers: dict[str, PlanHeader] = {}
    for name in record.named:
        try:
            with storage.open(name) as stream:
                headers[name] = decode_header(stream, storage.where(name))
        except (FileNotFoundError, StoreError) as error:
            if name in record.retired:
                continue  # it is being deleted, and nobody who opens the store now reads it
            if isinstance(error, StoreError):
                raise
            raise _missing_plan(storage, name) from error
    return headers


def _missing_plan(storage: Storage, name: str) -> StoreError:
    return StoreError(
        f"{storage.where(name)}: is missing, and {STORE_FILE} names it: copy it again with the store, or make it anew "
        f"from the tars with inspect-shards {storage.name} --reindex"
    )


def _read_entries(
    snapshot: Snapshot, headers: Sequence[PlanHeader], split: str, columns: Sequence[str]
) -> SplitEntries:
    planned = [name for header in headers for name in header.shard_names(split)]
    complete = [shard for shard in planned if index_name(shard) in snapshot.files]
    table, records = _read_merged(snapshot, split, complete, columns)
    is_merged = table is not None
    if table is None:
        table, records = _read_each(snapshot, complete, columns)
    counts = np.array([record.rows for record in records], dtype=np.int64)
    whole = np.array([_is_whole(snapshot, record) for record in records], dtype=np.bool_)
    lost = pa.array([], pa.string())
    if not whole.all():
        kept = np.repeat(whole, counts)
        newest = last_of_each(table["key"])
        lost = table["key"].take(pa.array(newest[~kept[newest]])).combine_chunks()
        table = table.filter(pa.array(kept))
    return SplitEntries(
        planned=tuple(planned),
        shards=tuple(record for record, keep in zip(records, whole, strict=True) if keep),
        damaged=tuple(record.shard for record, keep in zip(records, whole, strict=True) if not keep),
        lost=lost,
        entries=table.combine_chunks(),
        shard_of_entry=np.repeat(np.arange(int(whole.sum())), counts[whole]),
        is_merged=is_merged,
    )


def _read_merged(
    snapshot: Snapshot, split: str, complete: Sequence[str], columns: Sequence[str]
) -> tuple[pa.Table | None, list[ShardRecord]]:
    """The merged index, where it lists just the complete shards."""
    name = merged_index_name(split)
    if name not in snapshot.files:
        return None, []
    try:
        with snapshot.storage.open(name) as stream:
            table, records = decode_index(stream, snapshot.storage.where(name), columns)
    except FileNotFoundError:  # a build deleted it just now
        return None, []
    except StoreError as error:
        logger.warning("%s; it is derived, so the shards' own are read instead", error)
        return None, []
    return (table, records) if [record.shard for record in records] == list(complete) else (None, [])


def _read_each(
    snapshot: Snapshot, complete: Sequence[str], columns: Sequence[str]
) -> tuple[pa.Table, list[ShardRecord]]:
    names = [index_name(shard) for shard in complete]
    snapshot.storage.prefetch(names)
    tables: list[pa.Table] = [pa.schema([INDEX_SCHEMA.field(column) for column in columns]).empty_table()]
    records: list[ShardRecord] = []
    for name in names:
        try:
            with snapshot.storage.open(name) as stream:
                table, found = decode_index(stream, snapshot.storage.where(name), columns)
        except FileNotFoundError:  # a build writes the shard again just now
            continue
        tables.append(table)
        records += found
    return pa.concat_tables(tables), records


def _is_whole(snapshot: Snapshot, record: ShardRecord) -> bool:
    if record.tar_size == 0:
        return True
    listed = snapshot.files.get(tar_name(record.shard))
    if listed is not None and listed.size == record.tar_size:
        return True
    found = "is gone" if listed is None else f"has {listed.size:,} bytes"
    logger.warning(
        "%s %s, its index says %s bytes: its %d utterances count as missing. Run build-shards to write it again.",
        snapshot.storage.where(tar_name(record.shard)),
        found,
        f"{record.tar_size:,}",
        record.rows,
    )
    return False
