"""Make a store of any embeddings: no npz and no corpus needed."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
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
from shardwriter.format.record import MOST_FPS, Identity, parse_identity
from shardwriter.format.sample import Sample as EncodedSample
from shardwriter.format.sample import as_stored, encode_sample, parse_metadata
from shardwriter.format.shard_writer import ShardWriter, WrittenShard
from shardwriter.storage.locate import open_storage
from shardwriter.storage.lock import explained
from shardwriter.storage.storage import Storage
from shardwriter.store.stored_split import StoredSplit
from shardwriter.store.transaction import Transaction, open_transaction

Sample = tuple[str, npt.NDArray[Any], Mapping[str, Any]]

GIVEN_DTYPES = ("float16", "float32")
EXPECTED = "(key, embedding, metadata) for each utterance; {} where there is no metadata"
JSON_CURE = "expected a dict of what JSON can hold: str keys, str, numbers, lists, dicts, None"

logger = logging.getLogger(__name__)


def write_store(
    path: Path | str,
    samples: Iterable[Sample],
    split: str = "train",
    identity: Mapping[str, Any] | None = None,
    utterances_per_shard: int = 1000,
    fps: float = 25,
    dtype: str | None = None,
) -> int:
    """Write samples into one split of a store, streaming; `shardwriter.open_store` gives them back.

    They are added to what `write_store` has written there before. A sample that is stored already is skipped; one of
    the same key that differs takes the place of the older one, which stays in its tar, unused.

    The plan is published when the last shard is written, since a stream does not say ahead what comes; until then
    nothing of it is part of the store, and an interrupted one is written again.

    Args:
        path: Folder of the store, or its URL; made if it is not there.
        samples: (key, embedding `(dim, frames)` float16 or float32, metadata for the sample's json member) each; keys
            are escaped where WebDataset demands it (`shardwriter.format.names.unescape_key` undoes that). What comes
            together lies together, and is later shuffled together: give them in random order rather than speaker by
            speaker.
        split: train, val or test.
        identity: What the embeddings were made with, in your own words; must be the same for all of the store.
        utterances_per_shard: Samples in each shard but the last.
        fps: Frames per second.
        dtype: To store them in: float16, float32, or int8 with a scale for each row; None keeps that of the samples.

    Returns:
        Utterances written, without those that are stored already.

    Raises:
        StoreError: An argument or a sample is wrong, or the store was made otherwise.
    """
    storage = open_storage(path)
    name = storage.name
    _refuse_wrong_arguments(name, split, utterances_per_shard, fps, dtype)
    with open_transaction(storage, keep_replaced_days=float("inf")) as transaction:  # what was replaced stays here
        stream = _parsed(name, samples)
        first = next(stream, None)
        if first is None:
            raise StoreError(f"{name}: no samples for split {split!r}; give at least one")
        made = _identity(transaction, first, identity, float(fps), dtype or str(first[1].dtype))
        stored = StoredSplit(transaction.opened, split) if transaction.snapshot is not None else None
        checked = _check_each(name, chain([first], stream), split, made, stored)
        rows, shards = _write_shards(storage, checked, utterances_per_shard)
        if rows:
            with explained(storage.staging):
                _publish(transaction, made, split, rows, shards)
    if replaced := sum(row["utterance"] in stored for row in rows) if stored else 0:
        logger.warning("%s: %d samples take the place of older ones of the same keys, which differ", name, replaced)
    return len(rows)


def _refuse_wrong_arguments(name: str, split: str, per_shard: int, fps: float, dtype: str | None) -> None:
    if type(per_shard) is not int or per_shard < 1:
        raise StoreError(f"{name}: utterances_per_shard is {per_shard!r}; expected a whole number, at least 1")
    if type(fps) not in (int, float) or not 0 < fps < MOST_FPS:
        raise StoreError(f"{name}: fps is {fps!r}; expected a number above 0, and below {MOST_FPS:,}")
    if dtype is not None and dtype not in STORED_DTYPES:
        raise StoreError(f"{name}: dtype {dtype!r}; expected one of {', '.join(STORED_DTYPES)}")
    if split not in SPLITS:
        raise StoreError(f"{name}: split {split!r}; expected one of {', '.join(SPLITS)}")


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


def _identity(
    transaction: Transaction, first: Sample, encoder: Mapping[str, Any] | None, fps: float, dtype: str
) -> Identity:
    name = transaction.storage.name
    try:
        described = json.loads(json.dumps(dict(encoder or {}), allow_nan=False))  # as it will be read
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{name}: identity is {encoder!r}; expected a dict that JSON can hold ({error})") from error
    made = Identity(encoder=described, dtype=dtype, dim=len(first[1]), fps=fps)
    try:
        parse_identity(asdict(made))  # nobody else would read it
    except ValueError as error:
        raise StoreError(f"{name}: {error}") from error
    if transaction.snapshot is None or (recorded := transaction.opened.identity) == made:
        return made
    if recorded.precision:
        raise StoreError(f"{name}: was written by build-shards, so write_store cannot add to it; choose another folder")
    raise StoreError(
        f"{name}: a store has one identity, and these samples have another ({'; '.join(made.differences(recorded))}). "
        "Give them the store's identity, fps and dtype, or choose another folder"
    )


def _parsed(name: str, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples, each of which is what it should be, and is like the first one."""
    first: npt.NDArray[Any] | None = None
    try:
        stream = iter(samples)
    except TypeError as error:
        raise StoreError(f"{name}: samples is a {type(samples).__name__}; expected {EXPECTED}") from error
    for number, sample in enumerate(stream):
        if not isinstance(sample, tuple | list) or len(sample) != 3:
            found = f"{len(sample)} elements" if isinstance(sample, tuple | list) else f"a {type(sample).__name__}"
            raise StoreError(f"{name}: sample {number} is {found}; expected {EXPECTED}")
        key, embedding, metadata = sample
        if not isinstance(key, str):
            raise StoreError(f"{name}: the key of sample {number} is {key!r}; expected a str")
        _refuse_wrong_embedding(name, key, embedding, first)
        first = embedding if first is None else first
        _refuse_lossy_metadata(name, key, metadata)
        yield key, embedding, metadata


def _refuse_wrong_embedding(name: str, key: str, embedding: object, first: npt.NDArray[Any] | None) -> None:
    if not isinstance(embedding, np.ndarray):
        raise StoreError(f"{name}: {key!r} is a {type(embedding).__name__}; expected a NumPy array (dim, frames)")
    shape, dtype = embedding.shape, str(embedding.dtype)
    dim, dtypes = ("dim", GIVEN_DTYPES) if first is None else (str(len(first)), (str(first.dtype),))
    if len(shape) != 2 or 0 in shape or dim not in ("dim", str(shape[0])) or dtype not in dtypes:
        like = "" if first is None else ", as the first sample"
        turned = "; is it transposed?" if first is not None and shape[1:] == first.shape[:1] else ""
        raise StoreError(
            f"{name}: {key!r} is {shape} {dtype}; expected ({dim}, frames) {' or '.join(dtypes)}{like}{turned}"
        )


def _refuse_lossy_metadata(name: str, key: str, metadata: object) -> None:
    """Raise StoreError where a sample's metadata would not come back as it is."""
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        is_same = parse_metadata(text.encode()) == metadata
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{name}: {key!r}: its metadata is not a JSON object ({error}); {JSON_CURE}") from error
    if not is_same:
        raise StoreError(f"{name}: {key!r}: its metadata would come back as {text[:100]}; {JSON_CURE}")


def _check_each(
    name: str, samples: Iterable[Sample], split: str, identity: Identity, stored: StoredSplit | None
) -> Iterator[tuple[dict[str, Any], EncodedSample]]:
    """Rows of the plan, without their shards, and what is to be stored of each, but for what is stored already."""
    seen: set[str] = set()
    for key, embedding, metadata in samples:
        row = {"split": split, "key": _checked_key(name, key, seen), "utterance": key, "mouth": "", "audio": []}
        for field, value in {"frames": embedding.shape[1], "fps": identity.fps}.items():
            if metadata.get(field, value) != value:
                raise StoreError(f"{name}: {key!r}: its metadata says {field} {metadata[field]}; it has {value}")
        values = as_stored(embedding, identity.dtype)
        if values is None:
            raise StoreError(f"{name}: {key!r} is not finite in {identity.dtype}")
        sample = encode_sample(values, metadata)
        if stored is None or key not in stored or not _is_stored(stored, key, sample):
            yield row, sample


def _is_stored(stored: StoredSplit, key: str, sample: EncodedSample) -> bool:
    try:
        return stored.members(key) == sample.members
    except StoreError:  # what cannot be read any more is written again
        return False


def _checked_key(name: str, given: str, seen: set[str]) -> str:
    try:
        key = escape_key(given)
    except UnicodeEncodeError as error:
        raise StoreError(f"{name}: the key {given!r} cannot be written in UTF-8; give another") from error
    if not key:
        raise StoreError(f"{name}: a sample has an empty name; WebDataset would leave it out")
    if key in seen:
        raise StoreError(f"{name}: {given!r} comes twice; keys must be unique")
    seen.add(key)
    return key


def _write_shards(
    storage: Storage, samples: Iterator[tuple[dict[str, Any], EncodedSample]], per_shard: int
) -> tuple[list[dict[str, Any]], list[WrittenShard]]:
    """Write shards, without names yet. Returns the rows of the plan, too."""
    rows: list[dict[str, Any]] = []
    shards: list[WrittenShard] = []
    try:
        while batch := list(islice(samples, per_shard)):
            with explained(storage.staging), ShardWriter(storage.staging) as writer:
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
