"""A plan: what is to be stored, cut into shard tasks; published before it runs, never changed after.

A shard task depends on nothing but its rows of the plan, so its bytes are the same whoever runs it, in whatever order,
after however many interruptions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import IO, Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa

from iianet.wording import either, show
from shardwriter.format.document import digest_facts, take, take_count
from shardwriter.format.names import ID_DIGITS, ShardName, parse_view_split, plan_name, sorted_splits
from shardwriter.format.record import Identity, parse_identity, refuse_other_name
from shardwriter.format.table import (
    column_digests,
    decode_facts,
    decode_table,
    encode_table,
    reading,
    refuse_other_keys,
)

CURE: Final = "Copy it again with the store, or make it anew from the tars with inspect-shards STORE --reindex"

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
        columns: Digest of each column of its rows.
    """

    id: str
    kind: PlanKind
    base: tuple[str, ...]
    identity: Identity
    manifest_digests: Mapping[str, str]
    shards: Mapping[str, int]
    rows: int
    columns: Mapping[str, str]

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

    def check(self) -> None:
        """Raise ValueError where its rows are not those of its shards, or have values that no plan has."""
        names = self.table.schema.names
        if "key" in names:
            refuse_other_keys(self.table["key"])
        if wrong := [
            name for name, found in column_digests(self.table).items() if found != self.header.columns.get(name)
        ]:
            raise ValueError(f"the values of {', '.join(wrong)} are not those that its id is of")
        if {"split", "shard"} <= set(names):
            counted = sum(length for _, length in self._runs.values())
            if self._runs.keys() != set(self.header.all_shard_names) or counted != len(self.table):
                raise ValueError(
                    f"its rows are of other shards than the {sum(self.header.shards.values())} that it has"
                )
        if "audio" in names:
            _refuse_other_audio(self.table["audio"].combine_chunks())

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
    header = PlanHeader(
        id="",
        kind=kind,
        base=tuple(base),
        identity=identity,
        manifest_digests=dict(manifest_digests),
        shards=_count_shards(table),
        rows=len(table),
        columns=column_digests(table),
    )
    return Plan(header=replace(header, id=_id_of(header)), table=table)


def _id_of(header: PlanHeader) -> str:
    """Digest of all that a header says, and so of the digests of its columns: of the whole content."""
    facts = asdict(header)
    return digest_facts({name: facts[name] for name in facts if name != "id"})[:ID_DIGITS]


def _refuse_other_audio(audio: pa.Array) -> None:
    """Raise ValueError where an example lacks something, or is of a third speaker."""
    examples = audio.flatten()
    columns = {field.name: examples.field(field.name) for field in AUDIO_TYPE.value_type}
    if examples.null_count or any(column.null_count for column in columns.values()):
        raise ValueError("an example that lacks a value")
    speakers, lengths = np.asarray(columns["speaker"]), np.asarray(columns["num_samples"])
    if ((speakers < 1) | (speakers > 2) | (lengths < 0)).any():
        raise ValueError("an example of another speaker than 1 and 2, or of less than no samples")


def _count_shards(table: pa.Table) -> dict[str, int]:
    if not len(table):
        return {}
    counted = table.group_by("split").aggregate([("shard", "max")])
    numbers = zip(counted["split"].to_pylist(), counted["shard_max"].to_pylist(), strict=True)
    return {split: number + 1 for split, number in numbers}


def encode_plan(plan: Plan) -> bytes:
    """Content of a plan's file."""
    return encode_table(plan.table, asdict(plan.header))


def decode_header(stream: IO[bytes], where: str) -> PlanHeader:
    """Read what a plan says of itself; its rows are not read.

    Raises:
        StoreError: It is not a plan of this format, another one than its name says, damaged, or cannot be read. The
            message starts with `where`.
    """
    with reading(where, "a plan", CURE):
        return _parse_header(decode_facts(stream), where)


def decode_plan(stream: IO[bytes], where: str, columns: Sequence[str] = tuple(PLAN_SCHEMA.names)) -> Plan:
    """Read a plan, all columns of its rows or some, in their order in `PLAN_SCHEMA`. Raises as `decode_header`."""
    with reading(where, "a plan", CURE):
        table, facts = decode_table(stream, pa.schema([PLAN_SCHEMA.field(column) for column in columns]))
        plan = Plan(header=_parse_header(facts, where), table=table)
        plan.check()
        return plan


def _parse_header(facts: Mapping[str, Any], where: str) -> PlanHeader:
    """What a plan says of itself, checked. Raises ValueError."""
    if facts.get("kind") not in get_args(PlanKind):
        raise ValueError(f"kind is {show(facts.get('kind'))}; expected {either(get_args(PlanKind))}")
    shards = take(facts, "shards", dict)
    header = PlanHeader(
        id=take(facts, "id", str),
        kind=facts["kind"],
        base=tuple(take(facts, "base", list)),
        identity=parse_identity(take(facts, "identity", dict)),
        manifest_digests=take(facts, "manifest_digests", dict),
        shards={split: take_count(shards, split, 1) for split in shards},
        rows=take_count(facts, "rows"),
        columns=take(facts, "columns", dict),
    )
    for name in header.base:
        refuse_other_name(name)
    for split in (*shards, *header.manifest_digests):
        parse_view_split(split)
    if not sum(header.shards.values()) <= header.rows == facts["num_rows"]:
        raise ValueError(f"{facts['num_rows']} rows in {sum(header.shards.values())} shards; it says {header.rows}")
    if header.id != _id_of(header):
        raise ValueError(f"its content has the id {_id_of(header)}, and it says {show(header.id)}")
    if header.name != where.rpartition("/")[2]:
        raise ValueError(f"it is {header.name}")
    return header
