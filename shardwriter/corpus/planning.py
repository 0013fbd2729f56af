"""Cut utterances of manifests into the shards of a plan, column by column."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardwriter.corpus.manifest_data import EXAMPLE_SCHEMA, UTTERANCE_SCHEMA, Manifest
from shardwriter.format.plan import AUDIO_TYPE, PLAN_SCHEMA, Plan, PlanKind, make_plan
from shardwriter.format.record import Identity

Indices = npt.NDArray[np.int64]


def plan_utterances(
    kind: PlanKind,
    base: Sequence[str],
    identity: Identity,
    chosen: Mapping[str, tuple[Manifest, Indices]],
    utterances_per_shard: int,
) -> Plan:
    """Plan what is to be stored of manifests.

    Args:
        kind: Of the plan.
        base: File names of the active plans of the store, oldest first.
        identity: What the embeddings are made with.
        chosen: Per split, its manifest and which of its utterances to store, in hash order.
        utterances_per_shard: Utterances in every shard except a split's last.
    """
    parts = [
        _part(split, manifest, rows, utterances_per_shard) for split, (manifest, rows) in chosen.items() if len(rows)
    ]
    return make_plan(
        kind=kind,
        base=base,
        identity=identity,
        manifest_digests={split: manifest.digest() for split, (manifest, _) in chosen.items()},
        table=pa.concat_tables(parts) if parts else PLAN_SCHEMA.empty_table(),
    )


def _part(split: str, manifest: Manifest, rows: Indices, utterances_per_shard: int) -> pa.Table:
    taken = pa.array(rows)
    utterances = manifest.utterances
    columns: dict[str, Any] = {
        "split": pa.repeat(pa.scalar(split), len(rows)),
        "shard": pa.array(np.arange(len(rows)) // utterances_per_shard, type=pa.int32()),
        "key": utterances.column("key").take(taken),
        "utterance": utterances.column("name").take(taken),
        "mouth": utterances.column("mouth").take(taken),
        "audio": audio_lists(manifest).take(taken),
    }
    return pa.table(columns, schema=PLAN_SCHEMA)


def audio_lists(manifest: Manifest) -> pa.Array:
    """Per utterance, its examples as plans and shards hold them, `(utterances,)` of `AUDIO_TYPE`."""
    counts = np.bincount(manifest.utterance_of_example(), minlength=len(manifest.utterances))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    fields = AUDIO_TYPE.value_type
    names = [fields.field(number).name for number in range(fields.num_fields)]
    examples = pa.StructArray.from_arrays(
        [manifest.examples.column(name) for name in names], fields=[fields.field(name) for name in names]
    )
    return pa.ListArray.from_arrays(pa.array(offsets), examples).cast(AUDIO_TYPE)


def planned_manifest_tables(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Utterances and examples of a plan's rows, as `arrange` takes them: what a manifest would have said."""
    utterances = pa.table([rows["key"], rows["utterance"], rows["mouth"]], schema=UTTERANCE_SCHEMA)
    audio = rows["audio"].combine_chunks()
    if isinstance(audio, pa.ChunkedArray):
        audio = audio.chunk(0) if audio.num_chunks else pa.array([], AUDIO_TYPE)
    flat = audio.flatten()
    columns = [flat.field(name) for name in EXAMPLE_SCHEMA.names[1:]]
    parents = np.repeat(np.arange(len(audio)), np.asarray(audio.value_lengths()))
    examples = pa.table([pa.array(parents, type=pa.int64()), *columns], schema=EXAMPLE_SCHEMA)
    return utterances, examples
