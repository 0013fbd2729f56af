"""Make a store of any embeddings: no npz and no corpus needed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from configs.errors import StoreError
from shardwriter.card import write_card
from shardwriter.catalog import Catalog, complete_shards, is_store, read_store_record, write_store_record
from shardwriter.format import (
    PLAN_SCHEMA,
    SPLITS,
    Identity,
    StoreRecord,
    escape_key,
    plan_name,
    shard_name,
    shard_number,
)
from shardwriter.generation import Generations
from shardwriter.index import merge_indexes
from shardwriter.lock import build_lock
from shardwriter.plan import Plan, write_plan
from shardwriter.writer import ShardWriter

Sample = tuple[str, npt.NDArray[Any], Mapping[str, Any]]

STORED_DTYPES = ("float16", "float32")


def write_store(
    path: Path | str,
    samples: Iterable[Sample],
    split: str = "train",
    identity: Mapping[str, Any] | None = None,
    utterances_per_shard: int = 1000,
    fps: float = 25,
) -> int:
    """Write one split of a store from ready embeddings, streaming.

    The split's plan is published when its last shard is written, since a stream does not say ahead what comes; until
    then the split does not count, and an interrupted one is written anew.

    Args:
        path: Folder of the store; made if it is not there. Another split of the same store may be there already.
        samples: (key, embedding `(dim, frames)` float16 or float32, metadata for the sample's json member) each; keys
            are escaped where WebDataset demands it.
        split: train, val or test.
        identity: What the embeddings were made with, in your own words; must be the same for all splits.
        utterances_per_shard: Samples in each shard but the last.
        fps: Frames per second.

    Returns:
        Utterances written.

    Raises:
        StoreError: The split is there already, the store has another identity, or samples contradict each other.
    """
    store = Path(path)
    if utterances_per_shard < 1:
        raise StoreError(f"{store}: utterances_per_shard is {utterances_per_shard}; expected at least 1")
    with build_lock(store):
        generations = Generations.open(store)
        generations.clean()
        _check_free(store, split, generations.active)
        number, plans = generations.next_plan(), [plan.name for plan in generations.active]
        stream = iter(samples)
        first = next(stream, None)
        if first is None:
            raise StoreError(f"{store}: no samples for split {split!r}; a split holds at least one")
        made = _identity(store, first, identity, fps)
        rows = _write_shards(store, chain([first], stream), split, made, utterances_per_shard, plan_name(number))
        plan = Plan(
            number=number,
            kind="extend",
            base=tuple(plans),
            identity=made,
            manifest_digests={},
            table=pa.Table.from_pylist(rows, schema=PLAN_SCHEMA),
        )
        write_plan(store, plan)
        write_store_record(store, StoreRecord(identity=made, data_root=None, plans=(*plans, plan.name)))
        _finish(store)
    return len(rows)


def _check_free(store: Path, split: str, plans: Sequence[Plan]) -> None:
    """Make sure that no plan has the split, and that nothing of an interrupted call is left."""
    if split not in SPLITS:
        raise StoreError(f"{store}: split {split!r}; expected one of {', '.join(SPLITS)}")
    if any(split in plan.table["split"].unique().to_pylist() for plan in plans):
        raise StoreError(f"{store}: holds split {split!r} already; delete the store or choose another folder")
    for leftover in store.glob(f"{split}-*"):
        if shard_number(leftover.stem) is not None:
            leftover.unlink()


def _identity(store: Path, first: Sample, encoder: Mapping[str, Any] | None, fps: float) -> Identity:
    embedding = first[1]
    _refuse_no_array(store, first[0], embedding)
    described = json.loads(json.dumps(encoder or {}))  # as it will be read
    made = Identity(encoder=described, dtype=str(embedding.dtype), dim=len(embedding), fps=fps)
    if is_store(store) and (recorded := read_store_record(store).identity) != made:
        raise StoreError(f"{store}: was made as {recorded}, now asked for {made}; a store has one identity")
    return made


def _write_shards(
    store: Path, samples: Iterable[Sample], split: str, identity: Identity, per_shard: int, plan: str
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    stream = iter(samples)
    number = 0
    while batch := list(islice(stream, per_shard)):
        shard = shard_name(split, number)
        with ShardWriter(store, shard, plan) as writer:
            for name, embedding, metadata in batch:
                key = _checked(store, name, embedding, identity, seen)
                writer.add(key, embedding, metadata)
                rows.append({"split": split, "shard": shard, "key": key, "utterance": name, "mouth": "", "audio": []})
        number += 1
    return rows


def _refuse_no_array(store: Path, name: str, embedding: object) -> None:
    if not isinstance(embedding, np.ndarray):
        raise StoreError(f"{store}: {name!r} is a {type(embedding).__name__}; expected a NumPy array (dim, frames)")


def _checked(store: Path, name: str, embedding: npt.NDArray[Any], identity: Identity, seen: set[str]) -> str:
    key = escape_key(name)
    _refuse_no_array(store, name, embedding)
    if not key:
        raise StoreError(f"{store}: a sample has an empty name; WebDataset would leave it out")
    if key in seen:
        raise StoreError(f"{store}: {name!r} comes twice; keys must be unique")
    seen.add(key)
    shape = embedding.shape
    if len(shape) != 2 or shape[0] != identity.dim or shape[1] == 0 or str(embedding.dtype) != identity.dtype:
        raise StoreError(
            f"{store}: {name!r} is {shape} {embedding.dtype}; expected ({identity.dim}, frames) {identity.dtype}, as "
            "the first sample"
        )
    if identity.dtype not in STORED_DTYPES:
        raise StoreError(f"{store}: {name!r} is {embedding.dtype}; expected {' or '.join(STORED_DTYPES)}")
    if not np.isfinite(embedding).all():
        raise StoreError(f"{store}: {name!r} is not finite")
    return key


def _finish(store: Path) -> None:
    catalog = Catalog.open(store)
    counts = {}
    for split in catalog.splits:
        held = complete_shards(store, catalog.plans, split)
        merge_indexes(store, split, [held.entries], held.shards)
        counts[split] = len(held.newest)
    write_card(store, counts)
