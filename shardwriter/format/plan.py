"""A plan: what is to be encoded, cut into shard tasks; published before it runs, never changed after.

A shard task depends on nothing but its rows of the plan, so its bytes are the same whoever runs it, in whatever order,
after however many interruptions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iianet.errors import StoreError
from shardwriter.corpus.manifest import Manifest
from shardwriter.corpus.tables import EXAMPLE_SCHEMA, UTTERANCE_SCHEMA
from shardwriter.format.files import atomic_file
from shardwriter.format.names import PLAN_SCHEMA, Identity, plan_name, plan_number, shard_name, shard_number

PlanKind = Literal["extend", "replace", "compact"]
_METADATA = b"iianet-shards"


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to be written: rows of `PLAN_SCHEMA` in hash order."""

    split: str
    shard: str
    plan: str
    rows: pa.Table

    def alone(self) -> "ShardTask":
        """The same without the rest of its plan, which its rows, a slice, would take along to another process."""
        return replace(self, rows=self.rows.take(pa.array(range(len(self.rows)))))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One build generation.

    Attributes:
        number: Of this plan in its store.
        kind: `extend` adds to the plans in `base`; `replace` takes their place once it is complete, and so does
            `compact`, whose shards are copied from theirs.
        base: Names of the plans that counted when this one was made.
        identity: What its embeddings are made with.
        manifest_digests: Per split, the manifest that it was made from.
        table: Rows of `PLAN_SCHEMA`, or of some of its columns, shard by shard.
    """

    number: int
    kind: PlanKind
    base: tuple[str, ...]
    identity: Identity
    manifest_digests: Mapping[str, str]
    table: pa.Table

    @property
    def name(self) -> str:
        """File name in the store."""
        return plan_name(self.number)

    @cached_property
    def shards(self) -> dict[str, tuple[int, int]]:
        """First row and number of rows of every shard, in the plan's order."""
        runs = self.table["shard"].combine_chunks().dictionary_encode()
        encoded = pc.run_end_encode(runs.indices) if len(runs) else None
        if encoded is None:
            return {}
        names = runs.dictionary.to_pylist()
        ends = encoded.run_ends.to_pylist()
        starts = [0, *ends[:-1]]
        order = encoded.values.to_pylist()
        return {names[name]: (start, end - start) for name, start, end in zip(order, starts, ends, strict=True)}

    def tasks(self, splits: Sequence[str]) -> Iterator[ShardTask]:
        """The shard tasks of some splits."""
        for shard, (start, length) in self.shards.items():
            parsed = shard_number(shard)
            assert parsed is not None, shard
            if parsed[0] in splits:
                yield ShardTask(split=parsed[0], shard=shard, plan=self.name, rows=self.table.slice(start, length))


def make_plan(
    *,
    number: int,
    kind: PlanKind,
    base: Sequence[str],
    identity: Identity,
    work: Mapping[str, tuple[Manifest, Sequence[int]]],
    utterances_per_shard: int,
    first_shard: Mapping[str, int],
) -> Plan:
    """Cut utterances into shards.

    Args:
        work: Per split, its manifest and which of its utterances to encode, in hash order.
        utterances_per_shard: Of every shard but a split's last.
        first_shard: Per split, the first unused shard number.
    """
    columns: dict[str, list[Any]] = {name: [] for name in PLAN_SCHEMA.names}
    for split, (manifest, chosen) in work.items():
        audio = audio_lists(manifest)
        for position, index in enumerate(chosen):
            utterance = manifest.utterances[index]
            columns["split"].append(split)
            columns["shard"].append(shard_name(split, first_shard[split] + position // utterances_per_shard))
            columns["key"].append(utterance.key)
            columns["utterance"].append(utterance.name)
            columns["mouth"].append(utterance.mouth)
            columns["audio"].append(audio[index])
    return Plan(
        number=number,
        kind=kind,
        base=tuple(base),
        identity=identity,
        manifest_digests={split: manifest.digest() for split, (manifest, _) in work.items()},
        table=pa.Table.from_pydict(columns, schema=PLAN_SCHEMA),
    )


def audio_lists(manifest: Manifest) -> list[list[dict[str, Any]]]:
    """Per utterance, its examples as plans and shards hold them."""
    lists: list[list[dict[str, Any]]] = [[] for _ in manifest.utterances]
    for example in manifest.examples:
        lists[example.utterance].append(
            {
                "mixture": example.mixture,
                "source": example.source,
                "speaker": example.speaker,
                "num_samples": example.num_samples,
            }
        )
    return lists


def planned_rows(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Utterances and examples of a plan's rows, as `arrange` takes them: what a manifest would have said."""
    utterances = pa.table([table["key"], table["utterance"], table["mouth"]], schema=UTTERANCE_SCHEMA)
    audio = table["audio"].combine_chunks()
    flat = pc.list_flatten(audio)
    columns = [pc.struct_field(flat, name) for name in EXAMPLE_SCHEMA.names[1:]]
    examples = pa.table([pc.list_parent_indices(audio).cast(pa.int64()), *columns], schema=EXAMPLE_SCHEMA)
    return utterances, examples


def write_plan(store: Path, plan: Plan) -> None:
    """Publish a plan in its store."""
    facts = {
        "kind": plan.kind,
        "base": list(plan.base),
        "identity": asdict(plan.identity),
        "manifest_digests": dict(plan.manifest_digests),
    }
    table = plan.table.replace_schema_metadata({_METADATA: json.dumps(facts).encode()})
    path = store / plan.name
    assert not path.exists(), path
    with atomic_file(path) as stream:
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)


SHARD_COLUMNS = ("split", "shard")
"""Of a plan: what tells which shards there are, a fifth of the whole."""


def read_plan(store: Path, name: str, columns: Sequence[str] = tuple(PLAN_SCHEMA.names)) -> Plan:
    """Read a plan of a store, or some columns of it in their order in `PLAN_SCHEMA`.

    Raises:
        StoreError: It is not there, or not a plan of this format.
    """
    number = plan_number(name)
    try:
        table = pq.read_table(store / name, columns=list(columns), page_checksum_verification=True)
        facts = json.loads(table.schema.metadata[_METADATA])
        identity = Identity(**facts["identity"])
        found = table.replace_schema_metadata(None)
        found.validate(full=True)
        if number is None or found.schema != pa.schema([PLAN_SCHEMA.field(column) for column in columns]):
            raise ValueError(f"columns {found.schema.names}")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{store / name}: not a plan of this format ({error}); the store is damaged") from error
    return Plan(
        number=number,
        kind=facts["kind"],
        base=tuple(facts["base"]),
        identity=identity,
        manifest_digests=facts["manifest_digests"],
        table=found,
    )
