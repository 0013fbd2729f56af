"""Make a store of any embeddings: no npz and no corpus needed."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iianet.errors import StoreError
from shardwriter.format.names import (
    PLAN_SCHEMA,
    SPLITS,
    STORED_DTYPES,
    Identity,
    StoreRecord,
    escape_key,
    plan_name,
    shard_name,
)
from shardwriter.format.plan import Plan, write_plan
from shardwriter.format.quantize import Stored, as_stored
from shardwriter.format.shard_writer import ShardWriter
from shardwriter.storage.locate import local_folder
from shardwriter.storage.lock import build_lock
from shardwriter.store.catalog import Catalog, is_store, read_store_record, write_store_record
from shardwriter.store.completion import finish
from shardwriter.store.generation import Generations
from shardwriter.store.leftovers import drop_leftovers

Sample = tuple[str, npt.NDArray[Any], Mapping[str, Any]]

GIVEN_DTYPES = ("float16", "float32")


class Checked(NamedTuple):
    """A sample as it is stored."""

    key: str
    name: str
    stored: Stored
    metadata: Mapping[str, Any]


def write_store(
    path: Path | str,
    samples: Iterable[Sample],
    split: str = "train",
    identity: Mapping[str, Any] | None = None,
    utterances_per_shard: int = 1000,
    fps: float = 25,
    dtype: str | None = None,
) -> int:
    """Write one split of a store from ready embeddings, streaming.

    The split's plan is published when its last shard is written, since a stream does not say ahead what comes; until
    then the split does not count, and an interrupted one is written anew.

    Args:
        path: Folder of the store; made if it is not there. Another split of the same store may be there already.
        samples: (key, embedding `(dim, frames)` float16 or float32, metadata for the sample's json member) each; keys
            are escaped where WebDataset demands it. What comes together lies together, and is later shuffled
            together: give them in random order rather than speaker by speaker.
        split: train, val or test.
        identity: What the embeddings were made with, in your own words; must be the same for all splits.
        utterances_per_shard: Samples in each shard but the last.
        fps: Frames per second.
        dtype: To store them in: float16, float32, or int8 with a scale for each row; None keeps that of the samples.

    Returns:
        Utterances written.

    Raises:
        StoreError: The split is there already, the store has another identity, or samples contradict each other.
    """
    store = local_folder(path)
    if utterances_per_shard < 1:
        raise StoreError(f"{store}: utterances_per_shard is {utterances_per_shard}; expected at least 1")
    if dtype is not None and dtype not in STORED_DTYPES:
        raise StoreError(f"{store}: dtype {dtype!r}; expected one of {', '.join(STORED_DTYPES)}")
    with build_lock(store):
        generations = Generations.open(store)
        generations.drop_orphans()  # what was replaced stays: how long is the config's to say
        _check_free(store, split, generations.active)
        number, plans = generations.next_plan(), [plan.name for plan in generations.active]
        stream = iter(samples)
        first = next(stream, None)
        if first is None:
            raise StoreError(f"{store}: no samples for split {split!r}; a split holds at least one")
        given = _given_dtype(store, first)
        made = _identity(store, first, identity, fps, dtype or given)
        checked = _check_each(store, chain([first], stream), made, given)
        rows = _write_shards(store, checked, split, utterances_per_shard, plan_name(number))
        plan = Plan(
            number=number,
            kind="extend",
            base=tuple(plans),
            identity=made,
            manifest_digests={},
            table=pa.Table.from_pylist(rows, schema=PLAN_SCHEMA),
        )
        write_plan(store, plan)
        held = generations.record or StoreRecord(identity=made, data_root=None, plans=())
        write_store_record(store, replace(held, plans=(*plans, plan.name)))
        finish(store, Catalog.open(store).plans, {})
    return len(rows)


def _check_free(store: Path, split: str, plans: Sequence[Plan]) -> None:
    """Make sure that no plan has the split, and that nothing of an interrupted call is left; others' tars stay."""
    if split not in SPLITS:
        raise StoreError(f"{store}: split {split!r}; expected one of {', '.join(SPLITS)}")
    if any(split in plan.table["split"].unique().to_pylist() for plan in plans):
        raise StoreError(f"{store}: holds split {split!r} already; delete the store or choose another folder")
    drop_leftovers(store, f"{split}-*")


def _given_dtype(store: Path, first: Sample) -> str:
    """Dtype of the first sample, which is that of all."""
    name, embedding, _ = first
    _refuse_no_array(store, name, embedding)
    if str(embedding.dtype) not in GIVEN_DTYPES:
        raise StoreError(f"{store}: {name!r} is {embedding.dtype}; expected {' or '.join(GIVEN_DTYPES)}")
    return str(embedding.dtype)


def _identity(store: Path, first: Sample, encoder: Mapping[str, Any] | None, fps: float, dtype: str) -> Identity:
    described = json.loads(json.dumps(encoder or {}))  # as it will be read
    made = Identity(encoder=described, dtype=dtype, dim=len(first[1]), fps=fps)
    if is_store(store) and (recorded := read_store_record(store).identity) != made:
        raise StoreError(f"{store}: was made as {recorded}, now asked for {made}; a store has one identity")
    return made


def _check_each(store: Path, samples: Iterable[Sample], identity: Identity, given: str) -> Iterator[Checked]:
    seen: set[str] = set()
    for name, embedding, metadata in samples:
        key = _checked_key(store, name, seen)
        stored = _converted(store, name, embedding, identity, given)
        _check_metadata(store, name, metadata, {"frames": embedding.shape[1], "fps": identity.fps})
        yield Checked(key, name, stored, metadata)


def _check_metadata(store: Path, name: str, metadata: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raise StoreError where a sample's json could not be written, or would contradict its embedding."""
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{store}: {name!r}: its metadata is not JSON ({error})") from error
    for field, value in facts.items():
        if metadata.get(field, value) != value:
            raise StoreError(f"{store}: {name!r}: its metadata says {field} {metadata[field]}; it has {value}")


def _checked_key(store: Path, name: str, seen: set[str]) -> str:
    key = escape_key(name)
    if not key:
        raise StoreError(f"{store}: a sample has an empty name; WebDataset would leave it out")
    if key in seen:
        raise StoreError(f"{store}: {name!r} comes twice; keys must be unique")
    seen.add(key)
    return key


def _converted(store: Path, name: str, embedding: npt.NDArray[Any], identity: Identity, given: str) -> Stored:
    _refuse_no_array(store, name, embedding)
    shape = embedding.shape
    if len(shape) != 2 or shape[0] != identity.dim or shape[1] == 0 or str(embedding.dtype) != given:
        raise StoreError(
            f"{store}: {name!r} is {shape} {embedding.dtype}; expected ({identity.dim}, frames) {given}, as the first "
            "sample"
        )
    stored = as_stored(embedding, identity.dtype)
    if stored is None:
        raise StoreError(f"{store}: {name!r} is not finite in {identity.dtype}")
    return stored


def _refuse_no_array(store: Path, name: str, embedding: object) -> None:
    if not isinstance(embedding, np.ndarray):
        raise StoreError(f"{store}: {name!r} is a {type(embedding).__name__}; expected a NumPy array (dim, frames)")


def _write_shards(
    store: Path, samples: Iterator[Checked], split: str, per_shard: int, plan: str
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    number = 0
    while batch := list(islice(samples, per_shard)):
        shard = shard_name(split, number)
        with ShardWriter(store, shard, plan) as writer:
            for key, name, stored, metadata in batch:
                writer.add(key, stored.values, metadata, scale=stored.scale)
                rows.append({"split": split, "shard": shard, "key": key, "utterance": name, "mouth": "", "audio": []})
        number += 1
    return rows
