"""What a store holds, to be looked at: all that can be read, and what is wrong with the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import StoreError
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    INDEX_SUFFIX,
    METADATA_MEMBER,
    SCALE_MEMBER,
    TAR_SUFFIX,
    Identity,
    hash_position,
    parse_view_split,
    split_position,
)
from shardwriter.store.catalog import Catalog, SplitCatalog
from shardwriter.store.generation import Generations


class Place(NamedTuple):
    """Where a member's content lies in a tar, bytes."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of a shard's index; from `key` on, the columns of `INDEX_SCHEMA`."""

    split: str
    shard: str
    key: str
    mouth: str | None
    frames: int
    embedding_offset: int | None
    embedding_length: int | None
    scale_offset: int | None
    scale_length: int | None
    metadata_offset: int | None
    metadata_length: int | None
    audio_offset: int | None
    audio_length: int | None
    source_size: int | None
    source_mtime_ns: int | None
    source_digest: str | None
    error: str | None

    @property
    def where(self) -> str:
        """How a message about this sample starts."""
        return f"{self.shard}{TAR_SUFFIX}: {self.key}"

    @property
    def members(self) -> dict[str, "Place"]:
        """Where the sample's members lie, those that the index tells of, in the order of the tar."""
        places = {
            EMBEDDING_MEMBER: (self.embedding_offset, self.embedding_length),
            SCALE_MEMBER: (self.scale_offset, self.scale_length),
            METADATA_MEMBER: (self.metadata_offset, self.metadata_length),
            AUDIO_MEMBER: (self.audio_offset, self.audio_length),
        }
        return {
            member: Place(offset, size)
            for member, (offset, size) in places.items()
            if offset is not None and size is not None
        }


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A store as it was when opened.

    Attributes:
        catalog: Its record and plans.
        splits: The splits whose indexes could be read.
        generations: Its plans, also those that do not count yet, or any more.
        unreadable: Why other splits could not be read.
        damaged: Shards that have an index and yet do not count: their tar is gone or cut, or they are of another plan.
    """

    catalog: Catalog
    splits: Mapping[str, SplitCatalog]
    generations: Generations
    unreadable: Sequence[str]
    damaged: Sequence[str]

    @classmethod
    def open(cls, store: Path) -> "Contents":
        """Open a store. Raises StoreError where it is none, or its record or plans are damaged."""
        catalog = Catalog.open_to_read(store)
        splits: dict[str, SplitCatalog] = {}
        unreadable: list[str] = []
        damaged: list[str] = []
        for split in sorted(catalog.splits, key=split_position):
            try:
                splits[split] = catalog.split(split)
            except StoreError as error:
                unreadable.append(str(error))
                continue
            damaged += _damaged_shards(store, splits[split])
        generations = Generations.open(catalog.store)
        return cls(catalog=catalog, splits=splits, generations=generations, unreadable=unreadable, damaged=damaged)

    @property
    def store(self) -> Path:
        """The folder."""
        return self.catalog.store

    @property
    def problems(self) -> list[str]:
        """What does not count because it cannot be read, and the cure."""
        cure = "so its utterances count as missing; run build-shards to write it again"
        gone = "is gone, or does not fit its index or its plan"
        return [*self.unreadable, *(f"{shard}{TAR_SUFFIX}: {gone}, {cure}" for shard in self.damaged)]

    @property
    def identity(self) -> Identity:
        """What the embeddings were made with."""
        return self.catalog.record.identity

    @property
    def data_root(self) -> Path | None:
        """Folder that the store's paths are relative to, where it says so."""
        recorded = self.catalog.record.data_root
        return Path(recorded) if recorded is not None else None

    def stored(self, split: str) -> list[str]:
        """Keys whose newest entry is an embedding, in hash order."""
        held = self.splits[split]
        return sorted(
            (key for key in held.newest if key not in held.failures), key=lambda key: (hash_position(key), key)
        )

    def entry(self, split: str, key: str) -> Entry:
        """The newest entry of a key."""
        held = self.splits[split]
        row = held.newest[key]
        shard = held.shards[held.shard_of_entry[row]].shard
        return entries_of(split, shard, held.entries.slice(row, 1))[0]

    def members_of(self, split: str) -> tuple[str, ...]:
        """The members that every sample of a split has, in the order of the tar."""
        scale = (SCALE_MEMBER,) if self.identity.dtype == "int8" else ()
        audio = (AUDIO_MEMBER,) if self.identity.audio == "embed" and not parse_view_split(split)[1] else ()
        return EMBEDDING_MEMBER, *scale, METADATA_MEMBER, *audio

    def planned_rows(self, split: str) -> pa.Table:
        """Rows of `PLAN_SCHEMA` of all plans that count, oldest first."""
        return pa.concat_tables(plan.table.filter(pc.equal(plan.table["split"], split)) for plan in self.catalog.plans)


def entries_of(split: str, shard: str, rows: pa.Table) -> list[Entry]:
    """The rows of a shard's index, typed."""
    columns: list[dict[str, Any]] = rows.to_pylist()
    return [Entry(split=split, shard=shard, **row) for row in columns]


def spread(stored: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Choose `count` of some (split, key), evenly over hash order; all of them where there are no more."""
    ordered = sorted(stored, key=lambda item: (hash_position(item[1]), item))
    chosen = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[index] for index in chosen]


def _damaged_shards(store: Path, held: SplitCatalog) -> list[str]:
    counted = {record.shard for record in held.shards}
    others = [shard for shard in held.planned if shard not in counted]
    return [shard for shard in others if (store / f"{shard}{INDEX_SUFFIX}").is_file()]
