"""A plan: what is to be stored, cut into shard tasks; published before it runs, never changed after.

A shard task depends on nothing but its rows of the plan, so its bytes are the same whoever runs it, in whatever order,
after however many interruptions.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import IO, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iianet.errors import StoreError
from shardwriter.format.digest import digest_table
from shardwriter.format.names import ID_DIGITS, ShardName, plan_name, sorted_splits
from shardwriter.format.record import Identity
from shardwriter.format.table import read_table

PlanKind = Literal["extend", "replace", "compact"]

AUDIO_TYPE: Final = pa.list_(
    pa.struct(
        [
            pa.field("mixture", pa.string()),  # wav, relative to data_root
            pa.field("source", pa.string()),
            pa.field("speaker", pa.int8()),  # 1 or 2: which of the mixture's sources
            pa.field("num_samples", pa.int64()),
        ]
    )
)

PLAN_SCHEMA: Final = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),  # number of the shard in its split of this plan
        pa.field("key", pa.string(), nullable=False),
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("mouth", pa.string(), nullable=False),
        pa.field("audio", AUDIO_TYPE, nullable=False),
    ]
)
_METADATA = b"iianet-shards"


@dataclass(frozen=True, kw_only=True)
class PlanHeader:
    """What a plan says of itself, without its rows.

    Attributes:
        id: Digest of its content, 10 hexadecimal digits; stands in the names of its shards.
        kind: `extend` adds to the plans in `base`; `replace` takes their place once it is complete, and so does
            `compact`, whose shards are copied from theirs.
        base: File names of the plans that were active when this one was made.
        identity: What its embeddings are made with.
        manifest_digests: Per split, the manifest that it was made from.
        shards: Per split, how many shards it has.
        rows: Utterances of all of them.
    """

    id: str
    kind: PlanKind
    base: tuple[str, ...]
    identity: Identity
    manifest_digests: Mapping[str, str]
    shards: Mapping[str, int]
    rows: int

    @property
    def name(self) -> str:
        """File name in the store."""
        return plan_name(self.id)

    @property
    def splits(self) -> list[str]:
        """Its splits, and views of them, in the order in which they are shown."""
        return sorted_splits(self.shards)

    def shard_names(self, split: str) -> list[str]:
        """Names of its shards of a split, without suffix, in their order."""
        return [str(ShardName(split, self.id, number)) for number in range(self.shards.get(split, 0))]

    @property
    def all_shard_names(self) -> list[str]:
        """Names of its shards of all splits."""
        return [name for split in self.splits for name in self.shard_names(split)]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to be written.

    Attributes:
        shard: Its name, without suffix.
        split: Its split, or view of one.
        rows: Of `PLAN_SCHEMA`, in hash order.
    """

    shard: str
    split: str
    rows: pa.Table

    def alone(self) -> "ShardTask":
        """The same without the rest of its plan, which its rows, a slice, would take along to another process."""
        return replace(self, rows=self.rows.take(pa.array(range(len(self.rows)))))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan with its rows of `PLAN_SCHEMA`, or of some of its columns, shard by shard."""

    header: PlanHeader
    table: pa.Table

    @cached_property
    def _runs(self) -> dict[str, tuple[int, int]]:
        """First row and number of rows of each shard, by its name."""
        splits = self.table["split"].combine_chunks().dictionary_encode()
        codes, numbers = np.asarray(splits.indices), np.asarray(self.table["shard"])
        if not len(codes):
            return {}
        names = splits.dictionary.to_pylist()
        starts = [0, *(np.flatnonzero((np.diff(codes) != 0) | (np.diff(numbers) != 0)) + 1).tolist()]
        ends = [*starts[1:], len(codes)]
        return {
            str(ShardName(names[codes[start]], self.header.id, int(numbers[start]))): (start, end - start)
            for start, end in zip(starts, ends, strict=True)
        }

    def tasks(self, splits: Sequence[str] | None = None) -> Iterator[ShardTask]:
        """The shard tasks of some splits, by default of all."""
        for split in self.header.splits:
            if splits is None or split in splits:
                for shard in self.header.shard_names(split):
                    start, length = self._runs[shard]
                    yield ShardTask(shard=shard, split=split, rows=self.table.slice(start, length))


def make_plan(
    *, kind: PlanKind, base: Sequence[str], identity: Identity, manifest_digests: Mapping[str, str], table: pa.Table
) -> Plan:
    """Make a plan of rows of `PLAN_SCHEMA`, in which the shards of a split are numbered from 0 without a gap."""
    facts = {"kind": kind, "base": list(base), "identity": asdict(identity), "manifest_digests": dict(manifest_digests)}
    digest = digest_table(table, json.dumps(facts, sort_keys=True).encode())
    header = PlanHeader(
        id=digest[:ID_DIGITS],
        kind=kind,
        base=tuple(base),
        identity=identity,
        manifest_digests=dict(manifest_digests),
        shards=_count_shards(table),
        rows=len(table),
    )
    return Plan(header=header, table=table)


def _count_shards(table: pa.Table) -> dict[str, int]:
    if not len(table):
        return {}
    counted = table.group_by("split").aggregate([("shard", "max")])
    numbers = zip(counted["split"].to_pylist(), counted["shard_max"].to_pylist(), strict=True)
    return {split: number + 1 for split, number in numbers}


def encode_plan(plan: Plan) -> bytes:
    """Content of a plan's file."""
    described = plan.table.replace_schema_metadata({_METADATA: json.dumps(asdict(plan.header)).encode()})
    buffer = io.BytesIO()
    pq.write_table(described, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def decode_header(stream: IO[bytes], where: str) -> PlanHeader:
    """Read what a plan says of itself; its rows are not read.

    Raises:
        StoreError: It is not a plan of this format, or another one than its name says. The message starts with `where`.
    """
    try:
        facts: dict[str, Any] = json.loads(pq.ParquetFile(stream).schema_arrow.metadata[_METADATA])
        header = PlanHeader(**{**facts, "base": tuple(facts["base"]), "identity": Identity(**facts["identity"])})
        if header.name != where.rpartition("/")[2]:
            raise ValueError(f"it is {header.name}")
        return header
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _damaged(where, error) from error


def decode_rows(stream: IO[bytes], where: str, columns: Sequence[str] = tuple(PLAN_SCHEMA.names)) -> pa.Table:
    """Read a plan's rows, all of its columns or some, in their order in `PLAN_SCHEMA`. Raises as `decode_header`."""
    try:
        table = read_table(stream, columns)
        found = table.replace_schema_metadata(None)
        found.validate(full=True)
        if found.schema != pa.schema([PLAN_SCHEMA.field(column) for column in columns]):
            raise ValueError(f"columns {found.schema.names}")
        return found
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> StoreError:
    return StoreError(
        f"{where}: not a plan of this format ({error}). Copy it again with the store, or make it anew from the "
        "tars with inspect-shards STORE --reindex"
    )
