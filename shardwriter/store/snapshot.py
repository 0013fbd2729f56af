"""A store as it was when opened: its record, its plans, its files, and the entries of its splits."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import StoreError, UnreadableError
from shardwriter.corpus.manifest_data import Manifest, arrange, last_of_each
from shardwriter.corpus.planning import planned_manifest_tables
from shardwriter.format.digest import digest_of
from shardwriter.format.document import MOST_BYTES
from shardwriter.format.index import INDEX_SCHEMA, ShardRecord
from shardwriter.format.names import STORE_FILE, TAR_SUFFIX, sorted_splits, tar_name
from shardwriter.format.plan import PLAN_SCHEMA, Plan, PlanHeader, decode_header, decode_plan
from shardwriter.format.record import Identity, OtherVersion, StoreRecord
from shardwriter.format.table import LostError
from shardwriter.storage.storage import Hold, Listed, Storage
from shardwriter.store.entries import SplitEntries, read_entries

logger = logging.getLogger(__name__)

OPENINGS = 10
"""How often a store is opened again because a build changed it meanwhile."""
ALL_COLUMNS = tuple(PLAN_SCHEMA.names)


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A store as it was when opened.

    Attributes:
        storage: Where it lies.
        record: Contents of store.json.
        version: Of store.json.
        files: All files.
        headers: Of all plans that the record names, by file name, but for those that are lost.
        lost: Why plans that nobody reads, pending and retired ones, are lost, by file name.
        hold: Keeps the shards that it names, as long as it or a copy of it lives.
    """

    storage: Storage
    record: StoreRecord
    version: str
    files: Mapping[str, Listed]
    headers: Mapping[str, PlanHeader]
    lost: Mapping[str, str] = field(default_factory=dict)
    hold: Hold | None = None
    _plans: dict[tuple[str, tuple[str, ...]], Plan] = field(default_factory=dict, repr=False)
    _entries: dict[tuple[str, str], SplitEntries] = field(default_factory=dict, repr=False)
    _checked: set[str] = field(default_factory=set, repr=False)
    _warned: set[str] = field(default_factory=set, repr=False)

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
                headers, lost = _read_headers(storage, record)
            except StoreError:
                if storage.version(STORE_FILE) == version:
                    raise
                continue
            if version is not None and storage.version(STORE_FILE) == version:
                opened = cls(storage=storage, record=record, version=version, files=files, headers=headers)
                return replace(opened, lost=lost, hold=held)
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
        """The plan that replaces active ones once it is complete, if there is one.

        Raises:
            StoreError: It is lost. Readers never ask, so it does not stop them.
        """
        return self.header(self.record.pending) if self.record.pending else None

    def header(self, name: str) -> PlanHeader:
        """The header of a plan that the record names. Raises StoreError where it is lost."""
        if name in self.headers:
            return self.headers[name]
        reason = self.lost.get(name) or f"{self.storage.where(name)}: {STORE_FILE} names no such plan any more"
        raise StoreError(
            f"{reason}. It is the plan of an --overwrite or --compact in progress, and the store itself is whole: put "
            "the file back to resume that, or delete what it has written with build-shards --abandon"
        )

    @property
    def retired(self) -> list[PlanHeader]:
        """Plans that were replaced, and whose shards are still there, oldest first."""
        return [self.headers[name] for name in self.record.retired if name in self.headers]

    @property
    def splits(self) -> list[str]:
        """The splits that are planned, and views of them."""
        return sorted_splits(split for header in self.active for split in header.shards)

    def plan(self, header: PlanHeader, columns: Sequence[str] = ALL_COLUMNS) -> Plan:
        """A plan with these columns of its rows. Raises StoreError where it cannot be read."""
        key = (header.name, tuple(columns))
        if key not in self._plans:
            self._plans[key] = self.read_plan(header, columns)
        return self._plans[key]

    def read_plan(self, header: PlanHeader, columns: Sequence[str]) -> Plan:
        """The same, read and not kept, where it is needed once."""
        with _open_plan(self.storage, header.name) as stream:
            return decode_plan(stream, self.storage.where(header.name), columns)

    def planned_rows(self, split: str, columns: Sequence[str] = ALL_COLUMNS) -> pa.Table:
        """Rows of a split in the active plans, oldest first."""
        wanted = columns if "split" in columns else ("split", *columns)
        tables = [self.plan(header, wanted).table for header in self.active if split in header.shards]
        parts = [table.filter(pc.equal(table["split"], split)) for table in (PLAN_SCHEMA.empty_table(), *tables)]
        return pa.concat_tables(part.select(list(columns)) for part in parts)

    def split(self, split: str, columns: Sequence[str] | None = None) -> SplitEntries:
        """The active plans' complete shards of a split, with at least these columns of their entries (None: all)."""
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
            planned = [name for header in headers for name in header.shard_names(split)]
            identity = headers[0].identity if headers else self.identity
            known = read_entries(self.storage, self.files, split, planned, wanted, identity, self._warned)
            if known.incomplete and sum(split in header.shards for header in headers) > 1:
                known = replace(known, unfinished=self.unfinished_keys(headers, known, split))
            self._entries[key] = known
        return known

    def unfinished_keys(self, headers: Sequence[PlanHeader], entries: SplitEntries, split: str) -> pa.Array:
        """Keys of a split whose newest row of some plans is in a shard that is not complete."""
        shards = set(entries.incomplete)
        if not shards:
            return pa.array([], pa.string())
        keys: list[pa.ChunkedArray] = []
        flags: list[npt.NDArray[np.bool_]] = []
        for header in headers:
            if split in header.shards:
                for task in self.plan(header, ("split", "shard", "key")).tasks([split]):
                    keys.append(task.rows["key"])
                    flags.append(np.full(len(task.rows), task.shard in shards))
        every = pa.chunked_array([chunk for key in keys for chunk in key.chunks], type=pa.string()).combine_chunks()
        newest = last_of_each(every)
        return every.take(pa.array(newest[np.concatenate(flags)[newest]]))

    def open_tar(self, record: ShardRecord, *, check: bool = True) -> IO[bytes]:
        """Open the tar of a shard.

        Args:
            record: What its index says of it.
            check: Compare it with its digest the first time, so that nothing is read out of a damaged one.

        Raises:
            StoreError: It cannot be opened, or is damaged.
        """
        where = self.storage.where(tar_name(record.shard))
        try:
            opened = self.storage.open_tar(tar_name(record.shard), record.tar_size, record.tar_digest)
        except OSError as error:
            raise StoreError(f"{where}: cannot be opened ({error.strerror or error})") from error
        stream = os.fdopen(opened.descriptor, "rb")
        if not check or opened.is_checked or record.shard in self._checked:
            return stream
        digest, size = digest_of(stream)
        if (digest, size) != (record.tar_digest, record.tar_size):
            stream.close()
            raise StoreError(
                f"{where}: has {size:,} bytes and the digest {digest}, its index says {record.tar_size:,} and "
                f"{record.tar_digest}: it is damaged, so nothing is read out of it. Put back what was there, or delete "
                f"it and {self.identity.writes_again}"
            )
        self._checked.add(record.shard)
        stream.seek(0)
        return stream

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
    """Whether a place holds a store, complete or not."""
    return storage.version(STORE_FILE) is not None


def read_record(storage: Storage) -> StoreRecord:
    """Read store.json.

    Raises:
        StoreError: There is none, or it is not of this format and version.
    """
    where = storage.where(STORE_FILE)
    try:
        with storage.open(STORE_FILE) as stream:
            return StoreRecord.from_bytes(stream.read(MOST_BYTES + 1))
    except FileNotFoundError as error:
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
            f"{where}: was written in {error}. Stores are quick to build again and nothing else is lost: delete "
            f"{storage.name}, or choose another --shards, and run build-shards"
        ) from error
    except ValueError as error:
        raise StoreError(
            f"{where}: is damaged, or not the record of a store ({error}); put back what was there, or delete it and "
            f"make it again with inspect-shards {storage.name} --reindex"
        ) from error
    except OSError as error:
        raise UnreadableError(where, error) from error


def _read_headers(storage: Storage, record: StoreRecord) -> tuple[dict[str, PlanHeader], dict[str, str]]:
    """Headers of plans, and why those that nobody who opens the store now reads are lost."""
    storage.prefetch(record.named)
    headers: dict[str, PlanHeader] = {}
    lost: dict[str, str] = {}
    for name in record.named:
        try:
            headers[name] = read_header(storage, name)
        except LostError as error:
            if name in record.plans:
                raise
            lost[name] = str(error)
    for name in record.plans:
        if differences := record.identity.differences(headers[name].identity):
            raise StoreError(
                f"{storage.where(name)}: was made with another identity than {STORE_FILE} says "
                f"({'; '.join(differences)}): one of the two is not of this store. Put back the one that is"
            )
    return headers, lost


def read_header(storage: Storage, name: str) -> PlanHeader:
    """Header of a plan. Raises StoreError where it cannot be read; LostError where it is damaged or missing."""
    with _open_plan(storage, name) as stream:
        return decode_header(stream, storage.where(name))


def _open_plan(storage: Storage, name: str) -> IO[bytes]:
    try:
        return storage.open(name)
    except FileNotFoundError as error:
        raise LostError(
            f"{storage.where(name)}: is missing, and {STORE_FILE} names it: copy it again with the store, or make it "
            f"anew from the tars with inspect-shards {storage.name} --reindex"
        ) from error
