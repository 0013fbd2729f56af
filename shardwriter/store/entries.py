"""The entries of one split: what the indexes of its complete shards say, and the newest one of every key."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import StoreError
from iianet.wording import counted
from shardwriter.corpus.manifest_data import last_of_each
from shardwriter.format.index import INDEX_SCHEMA, ShardRecord, decode_index, decode_shard_index
from shardwriter.format.names import index_name, merged_index_name, parse_shard, tar_name
from shardwriter.format.record import Identity
from shardwriter.storage.storage import Listed, Storage

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SplitEntries:
    """The complete shards of one split.

    Attributes:
        planned: Names of all planned shards, in the order of the plans.
        shards: Those that are complete.
        damaged: Those that have an index, but whose tar is gone or has another size.
        entries: Rows of `INDEX_SCHEMA`, or of some of its columns, shard by shard.
        shard_of_entry: Index into `shards` of each row, `(entries,)`.
        is_merged: Whether they were read from an up-to-date merged index.
        unfinished: Keys, some of them with entries, whose newest plan has no complete shard for them; of several
            plans, since one supersedes nothing.
    """

    planned: tuple[str, ...]
    shards: tuple[ShardRecord, ...]
    damaged: tuple[str, ...]
    entries: pa.Table
    shard_of_entry: Rows
    is_merged: bool
    unfinished: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))

    @cached_property
    def newest_rows(self) -> Rows:
        """Row of each key's newest entry, ascending: later plans win, since their shards come later.

        An unfinished key has none: an older embedding of it is of another mouth.
        """
        plans = {name.plan_id for shard in self.planned if (name := parse_shard(shard))}
        if len(plans) <= 1:  # a plan has every key once
            return np.arange(len(self.entries))
        rows = last_of_each(self.entries["key"])
        is_unfinished = pc.is_in(self.entries["key"].take(pa.array(rows)), value_set=self.unfinished)
        return rows[~np.asarray(is_unfinished, dtype=np.bool_)]

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


def read_entries(
    storage: Storage,
    files: Mapping[str, Listed],
    split: str,
    planned: Sequence[str],
    columns: Sequence[str],
    identity: Identity,
    warned: set[str],
) -> SplitEntries:
    """Read the indexes of a split.

    Args:
        storage: Where the store lies.
        files: Its files.
        split: Of the store.
        planned: Names of its planned shards, in the order of the plans.
        columns: Of `INDEX_SCHEMA`, to be read.
        identity: Of the plans.
        warned: Shards whose tars are known to be gone or cut; others are added when that is said.

    Raises:
        StoreError: An index is damaged, is another's, cannot be read, or lists what the identity does not.
    """
    complete = [shard for shard in planned if index_name(shard) in files]
    table, records = _read_merged(storage, files, split, planned, complete, columns, identity)
    is_merged = table is not None
    if table is None:
        table, records = _read_each(storage, complete, columns, identity)
    counts = np.array([record.rows for record in records], dtype=np.int64)
    whole = np.array([_is_whole(storage, files, record, identity, warned) for record in records], dtype=np.bool_)
    if not whole.all():
        table = table.filter(pa.array(np.repeat(whole, counts)))
    return SplitEntries(
        planned=tuple(planned),
        shards=tuple(record for record, keep in zip(records, whole, strict=True) if keep),
        damaged=tuple(record.shard for record, keep in zip(records, whole, strict=True) if not keep),
        entries=table.combine_chunks(),
        shard_of_entry=np.repeat(np.arange(int(whole.sum())), counts[whole]),
        is_merged=is_merged,
    )


def _read_merged(
    storage: Storage,
    files: Mapping[str, Listed],
    split: str,
    planned: Sequence[str],
    complete: Sequence[str],
    columns: Sequence[str],
    identity: Identity,
) -> tuple[pa.Table | None, list[ShardRecord]]:
    """The merged index, where it lists just the complete shards."""
    name = merged_index_name(split)
    if name not in files:
        return None, []
    try:
        table, records = read_index(storage, name, columns, identity, complete)
    except FileNotFoundError:  # a build deleted it just now
        return None, []
    except StoreError as error:
        logger.warning("%s; it is derived, so the shards' own are read instead", error)
        return None, []
    unfinished = set(planned).difference(complete)
    gone = [record.shard for record in records if record.shard in unfinished]
    if gone:  # a build that writes a shard again deletes the merged index, too
        logger.warning(
            "%s: lists %s without an index, e.g. %s: the utterances count as missing. Put the indexes back, or %s, "
            "which writes the shards again",
            storage.where(name),
            counted(len(gone), "shard"),
            storage.where(index_name(gone[0])),
            identity.writes_again,
        )
    return (table, records) if [record.shard for record in records] == list(complete) else (None, [])


def _read_each(
    storage: Storage, complete: Sequence[str], columns: Sequence[str], identity: Identity
) -> tuple[pa.Table, list[ShardRecord]]:
    storage.prefetch(map(index_name, complete))
    tables: list[pa.Table] = [pa.schema([INDEX_SCHEMA.field(column) for column in columns]).empty_table()]
    records: list[ShardRecord] = []
    for shard in complete:
        try:
            table, record = read_shard_index(storage, shard, columns, identity)
        except FileNotFoundError:  # a build writes the shard again just now
            continue
        tables.append(table)
        records.append(record)
    return pa.concat_tables(tables), records


def read_index(
    storage: Storage, name: str, columns: Sequence[str] | None, identity: Identity, shards: Sequence[str] = ()
) -> tuple[pa.Table, list[ShardRecord]]:
    """Read an index, see `decode_index`. Raises FileNotFoundError where it is gone."""
    with storage.open(name) as stream:
        return decode_index(stream, storage.where(name), columns, identity, shards)


def read_shard_index(
    storage: Storage, shard: str, columns: Sequence[str] | None, identity: Identity
) -> tuple[pa.Table, ShardRecord]:
    """Read a shard's own index, see `decode_shard_index`. Raises FileNotFoundError where it is gone."""
    with storage.open(index_name(shard)) as stream:
        return decode_shard_index(stream, storage.where(index_name(shard)), shard, columns, identity)


def _is_whole(
    storage: Storage, files: Mapping[str, Listed], record: ShardRecord, identity: Identity, warned: set[str]
) -> bool:
    if record.tar_size == 0:
        return True
    listed = files.get(tar_name(record.shard))
    if listed is not None and listed.size == record.tar_size:
        return True
    if record.shard in warned:
        return False
    warned.add(record.shard)
    found = "is gone" if listed is None else f"has {listed.size:,} bytes"
    logger.warning(
        "%s %s, its index says %s bytes: its %d utterances count as missing. Put it back, or %s.",
        storage.where(tar_name(record.shard)),
        found,
        f"{record.tar_size:,}",
        record.rows,
        identity.writes_again,
    )
    return False
