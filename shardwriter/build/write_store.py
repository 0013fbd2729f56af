"""Make a store of any embeddings: no npz and no corpus needed."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iianet.errors import StoreError
from shardwriter.encode.write_shards import publish_shard
from shardwriter.format.names import SPLITS, STORED_DTYPES, ShardName, escape_key
from shardwriter.format.plan import PLAN_SCHEMA, make_plan
from shardwriter.format.record import Identity
from shardwriter.format.sample import Sample as StoredSample
from shardwriter.format.sample import Stored, as_stored, encode_sample
from shardwriter.format.shard_writer import ShardWriter, WrittenShard
from shardwriter.storage.locate import open_storage
from shardwriter.storage.storage import Storage
from shardwriter.store.transaction import Transaction, open_transaction

Sample = tuple[str, npt.NDArray[Any], Mapping[str, Any]]

GIVEN_DTYPES = ("float16", "float32")


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
    then the split is not part of the store, and an interrupted one is written again.

    Args:
        path: Folder of the store, or its URL; made if it is not there. Another split of the same store may be there.
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
    storage = open_storage(path)
    name = storage.name
    if utterances_per_shard < 1:
        raise StoreError(f"{name}: utterances_per_shard is {utterances_per_shard}; expected at least 1")
    if dtype is not None and dtype not in STORED_DTYPES:
        raise StoreError(f"{name}: dtype {dtype!r}; expected one of {', '.join(STORED_DTYPES)}")
    if split not in SPLITS:
        raise StoreError(f"{name}: split {split!r}; expected one of {', '.join(SPLITS)}")
    with open_transaction(storage, keep_replaced_days=float("inf")) as transaction:  # what was replaced stays here
        if transaction.snapshot is not None and split in transaction.opened.splits:
            raise StoreError(f"{name}: holds split {split!r} already; delete the store or choose another folder")
        stream = iter(samples)
        first = next(stream, None)
        if first is None:
            raise StoreError(f"{name}: no samples for split {split!r}; a split holds at least one")
        given = _given_dtype(name, first)
        made = _identity(transaction, first, identity, fps, dtype or given)
        checked = _check_each(name, chain([first], stream), split, made, given)
        rows, shards = _write_shards(storage, checked, utterances_per_shard)
        _publish(transaction, made, split, rows, shards)
    return len(rows)


def _publish(
    transaction: Transaction,
    identity: Identity,
    split: str,
    rows: Sequence[Mapping[str, Any]],
    shards: Sequence[WrittenShard],
) -> None:
    """Publish the shards under the name of their plan, which is known now, and then the plan: until it is active, they
    are garbage."""
    plan = make_plan(
        kind="extend",
        base=[header.name for header in transaction.active],
        identity=identity,
        manifest_digests={},
        table=pa.Table.from_pylist(list(rows), schema=PLAN_SCHEMA),
    )
    if transaction.snapshot is None:  # a store without a record, but with shards, would be one whose record was lost
        transaction.create(identity, None)
    transaction.announce(plan)
    for number, written in enumerate(shards):
        publish_shard(transaction.storage, str(ShardName(split, plan.header.id, number)), written)
    recorded = transaction.snapshot.record.data_root if transaction.snapshot else None
    transaction.publish(plan, recorded)
    transaction.conclude()


def _given_dtype(name: str, first: Sample) -> str:
    """Dtype of the first sample, which is that of all."""
    key, embedding, _ = first
    _refuse_no_array(name, key, embedding)
    if str(embedding.dtype) not in GIVEN_DTYPES:
        raise StoreError(f"{name}: {key!r} is {embedding.dtype}; expected {' or '.join(GIVEN_DTYPES)}")
    return str(embedding.dtype)


def _identity(
    transaction: Transaction, first: Sample, encoder: Mapping[str, Any] | None, fps: float, dtype: str
) -> Identity:
    described = json.loads(json.dumps(encoder or {}))  # as it will be read
    made = Identity(encoder=described, dtype=dtype, dim=len(first[1]) if first[1].ndim else 0, fps=fps)
    if transaction.snapshot is not None and (recorded := transaction.opened.identity) != made:
        raise StoreError(
            f"{transaction.storage.name}: was made as {recorded}, now asked for {made}; a store has one identity"
        )
    return made


def _check_each(
    name: str, samples: Iterable[Sample], split: str, identity: Identity, given: str
) -> Iterator[tuple[dict[str, Any], StoredSample]]:
    """Rows of the plan, without their shards, and what is stored of each."""
    seen: set[str] = set()
    for key, embedding, metadata in samples:
        row = {"split": split, "key": _checked_key(name, key, seen), "utterance": key, "mouth": "", "audio": []}
        stored = _converted(name, key, embedding, identity, given)
        _check_metadata(name, key, metadata, {"frames": embedding.shape[1], "fps": identity.fps})
        yield row, encode_sample(stored, metadata)


def _check_metadata(name: str, key: str, metadata: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raise StoreError where a sample's json could not be written, or would contradict its embedding."""
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name}: {key!r}: its metadata is not JSON ({error})") from error
    for field, value in facts.items():
        if metadata.get(field, value) != value:
            raise StoreError(f"{name}: {key!r}: its metadata says {field} {metadata[field]}; it has {value}")


def _checked_key(name: str, given: str, seen: set[str]) -> str:
    key = escape_key(given)
    if not key:
        raise StoreError(f"{name}: a sample has an empty name; WebDataset would leave it out")
    if key in seen:
        raise StoreError(f"{name}: {given!r} comes twice; keys must be unique")
    seen.add(key)
    return key


def _converted(name: str, key: str, embedding: npt.NDArray[Any], identity: Identity, given: str) -> Stored:
    _refuse_no_array(name, key, embedding)
    shape = embedding.shape
    if len(shape) != 2 or shape[0] != identity.dim or shape[1] == 0 or str(embedding.dtype) != given:
        raise StoreError(
            f"{name}: {key!r} is {shape} {embedding.dtype}; expected ({identity.dim}, frames) {given}, as the first "
            "sample"
        )
    stored = as_stored(embedding, identity.dtype)
    if stored is None:
        raise StoreError(f"{name}: {key!r} is not finite in {identity.dtype}")
    return stored


def _refuse_no_array(name: str, key: str, embedding: object) -> None:
    if not isinstance(embedding, np.ndarray):
        raise StoreError(f"{name}: {key!r} is a {type(embedding).__name__}; expected a NumPy array (dim, frames)")


def _write_shards(
    storage: Storage, samples: Iterator[tuple[dict[str, Any], StoredSample]], per_shard: int
) -> tuple[list[dict[str, Any]], list[WrittenShard]]:
    """Write shards, without names yet. Returns the rows of the plan, too."""
    rows: list[dict[str, Any]] = []
    shards: list[WrittenShard] = []
    try:
        while batch := list(islice(samples, per_shard)):
            with ShardWriter(storage.staging) as writer:
                for row, sample in batch:
                    writer.add(row["key"], sample)
                    rows.append({**row, "shard": len(shards)})
                shards.append(writer.finish())
    except BaseException:
        for written in shards:
            if written.tar is not None:
                written.tar.unlink(missing_ok=True)
        raise
    return rows, shards
