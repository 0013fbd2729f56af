"""Index a folder's tars where they lie, where they are as a store's own: nothing is copied, nothing in them changes."""

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from tqdm import tqdm

from iianet.errors import StoreError
from shardwriter.format.digest import digest_of
from shardwriter.format.index import ShardRecord, read_index, write_index
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    INDEX_COLUMNS,
    INDEX_SCHEMA,
    INDEX_SUFFIX,
    KEY_BYTES,
    METADATA_MEMBER,
    NPY_HEADER_BYTES,
    PLAN_SCHEMA,
    SCALE_MEMBER,
    TAR_SUFFIX,
    VIEW_MARK,
    Identity,
    StoreRecord,
    merged_index_name,
    parse_view_split,
    plan_name,
    plan_number,
    shard_number,
    split_position,
    split_view_key,
)
from shardwriter.format.plan import Plan, write_plan
from shardwriter.inspect.contents import entries_of
from shardwriter.inspect.layout import Layout, find_layout, is_plain_header, read_header
from shardwriter.inspect.located import Located, LocatedTar
from shardwriter.inspect.verify_sample import verify_sample
from shardwriter.store.catalog import write_store_record
from shardwriter.store.generation import Generations
from shardwriter.store.recorded import (
    Recorded,
    fps_of,
    parse_metadata,
    plan_row,
    source_file,
    utterance_name,
    with_layout,
)

logger = logging.getLogger(__name__)

_KEY = re.compile(rf"[A-Za-z0-9_%-]{{1,{KEY_BYTES}}}")
_OWN_KEY = re.compile(rf"[A-Za-z0-9_%-]+({VIEW_MARK}[0-9]+)?")


class Misfit(StoreError):
    """A tar is not as a store's own, so it cannot be indexed where it lies."""


@dataclass(frozen=True, kw_only=True)
class _Adopted:
    """What becomes of one tar: its record, its rows of the index, its rows of the plan."""

    record: ShardRecord
    index: pa.Table
    planned: pa.Table


def adopt(store: Path, tars: Sequence[LocatedTar], recorded: Recorded, data_root: str | None) -> None:
    """Make a folder with a store's own tars a store; its lock must be held.

    Every byte is read and checked before anything is written. The plans are written last: until they are there,
    store.json names some that are not, so that no build takes the tars for leftovers.

    Raises:
        Misfit: A tar is not as a store's own.
    """
    ordered = sorted(tars, key=_order)
    layout = find_layout(ordered)
    identity = _identity(ordered, layout, recorded)
    first = Generations(store=store, record=None).next_plan()
    adopted = _adopt_all(ordered, identity, first)
    _warn_of_failures(store, {item.record.shard for item in adopted})
    plans = _plans(adopted, first, identity)
    names = tuple(plan.name for plan in plans)
    root = data_root or recorded.data_root
    write_store_record(store, StoreRecord(identity=identity, data_root=root, plans=names))
    _delete_derived(store, ordered)
    for item in adopted:
        write_index(store, item.record, item.index.to_pylist())
    for plan in plans:
        write_plan(store, plan)


def _plans(adopted: Sequence[_Adopted], first: int, identity: Identity) -> list[Plan]:
    """A plan for each generation: in one plan a key comes once, and where it comes again, it is newer."""
    tables: dict[str, list[pa.Table]] = {}
    for item in adopted:
        tables.setdefault(item.record.plan, []).append(item.planned)
    names = sorted(tables)
    return [
        Plan(
            number=first + number,
            kind="extend",
            base=tuple(names[:number]),
            identity=identity,
            manifest_digests={},
            table=pa.concat_tables(tables[name]),
        )
        for number, name in enumerate(names)
    ]


def _warn_of_failures(store: Path, shards: Collection[str]) -> None:
    """Say what indexes tell that tars cannot: which utterances could not be stored."""
    lost = 0
    for path in sorted(store.glob(f"*{INDEX_SUFFIX}")):
        if shard_number(path.stem) is None:
            continue
        try:
            rows, _ = read_index(path)
        except StoreError:
            continue
        lost += len(rows) - rows["error"].null_count if path.stem in shards else len(rows)
    if lost:
        logger.warning("%s: %d utterances are recorded as failed; build-shards will take them for new", store, lost)


def _delete_derived(store: Path, tars: Sequence[LocatedTar]) -> None:
    """Older plans, which a build would delete with their shards, as those of a dead one; and merged indexes."""
    for path in store.glob("plan-*.parquet"):
        if plan_number(path.name) is not None:
            path.unlink()
    for split in {_split(tar) for tar in tars}:
        (store / merged_index_name(split)).unlink(missing_ok=True)


def _split(tar: LocatedTar) -> str:
    parsed = shard_number(tar.path.stem)
    if parsed is None:
        raise Misfit(f"{tar.path}: is not named as a store's shards are, such as train-000000{TAR_SUFFIX}")
    return parsed[0]


def _order(tar: LocatedTar) -> tuple[tuple[int, int], int]:
    """Sorts shards by split and number: where a key has two entries, the later one is the newer, and counts."""
    parsed = shard_number(tar.path.stem)
    return split_position(_split(tar)), parsed[1] if parsed else 0


def _identity(tars: Sequence[LocatedTar], layout: Layout, recorded: Recorded) -> Identity:
    """What the tars show, and what is recorded."""
    first = next(sample for tar in tars for sample in tar.samples)
    if layout.transposed or layout.lossy:
        raise Misfit(f"{first.tar}: its embeddings are no (dim, frames) in float16, float32 or int8")
    fps = recorded.identity.fps if recorded.identity else _fps(first)
    found = with_layout(recorded.identity, dtype=layout.dtype, dim=layout.dim, fps=fps, audio=layout.audio)
    if recorded.identity is not None and found != recorded.identity:
        was = recorded.identity
        raise StoreError(
            f"{first.tar.parent}: its tars hold ({found.dim}, frames) {found.dtype}, audio {found.audio}; its record "
            f"says ({was.dim}, frames) {was.dtype}, audio {was.audio}, so they are of different stores. Take "
            "store.json and the plans away, or the tars."
        )
    return found


def _fps(sample: Located) -> float:
    with sample.tar.open("rb") as stream:
        return fps_of(_metadata(stream, sample) if METADATA_MEMBER in sample.places else {})


def _adopt_all(tars: Sequence[LocatedTar], identity: Identity, first: int) -> list[_Adopted]:
    total = sum(tar.path.stat().st_size for tar in tars)
    adopted: list[_Adopted] = []
    number = first
    seen: set[str] = set()
    with tqdm(total=total, desc="checking", unit="B", unit_scale=True, delay=1.0, dynamic_ncols=True) as bar:
        for tar in tars:
            keys = {f"{_split(tar)}/{sample.key}" for sample in tar.samples}
            if not seen.isdisjoint(keys):
                number, seen = number + 1, set()
            seen |= keys
            adopted.append(_adopt(tar, identity, plan_name(number)))
            bar.update(adopted[-1].record.tar_size)
    return adopted


def _adopt(tar: LocatedTar, identity: Identity, plan: str) -> _Adopted:
    shard, split = tar.path.stem, _split(tar)
    if tar.oddity is not None or tar.others or not tar.samples:
        raise Misfit(f"{tar.path}: {tar.oddity or ('holds other files' if tar.others else 'holds no samples')}")
    members = _members(identity, split)
    rows, planned = [], []
    with tar.path.open("rb") as stream:
        digest, size = digest_of(stream)
        for sample in tar.samples:
            row, metadata = _index_row(stream, sample, split, members, identity)
            utterance = utterance_name(sample.key, metadata)
            rows.append(row)
            planned.append(_planned(sample, split, utterance, metadata))
        index = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
        for entry in entries_of(split, shard, index):
            if problems := verify_sample(stream, entry, members, identity):
                raise Misfit(f"{tar.path.parent}: {problems[0]}")
    record = ShardRecord(shard=shard, plan=plan, tar_size=size, tar_digest=digest, rows=len(rows))
    return _Adopted(record=record, index=index, planned=pa.Table.from_pylist(planned, schema=PLAN_SCHEMA))


def _members(identity: Identity, split: str) -> tuple[str, ...]:
    scale = (SCALE_MEMBER,) if identity.dtype == "int8" else ()
    audio = (AUDIO_MEMBER,) if identity.audio == "embed" and not parse_view_split(split)[1] else ()
    return EMBEDDING_MEMBER, *scale, METADATA_MEMBER, *audio


def _index_row(
    stream: IO[bytes], sample: Located, split: str, members: Sequence[str], identity: Identity
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sample's row of the index, and what its json says."""
    marked = VIEW_MARK in sample.key
    if _OWN_KEY.fullmatch(sample.key) is None:
        raise Misfit(f"{sample.where}: is no key of a store's split {split}")
    base, view = split_view_key(sample.key)
    if _KEY.fullmatch(base) is None or view != parse_view_split(split)[1] or marked != bool(view):
        raise Misfit(f"{sample.where}: is no key of a store's split {split}")
    if tuple(sample.places) != tuple(members):
        raise Misfit(f"{sample.where}: has {', '.join(sample.places)}; expected {', '.join(members)}")
    row: dict[str, Any] = {"key": sample.key}
    for member, place in sample.places.items():
        row[f"{INDEX_COLUMNS[member]}_offset"], row[f"{INDEX_COLUMNS[member]}_length"] = place
        if member != METADATA_MEMBER:
            shape = _plain_shape(stream, sample, member)
            row |= {"frames": shape[-1]} if member == EMBEDDING_MEMBER else {}
    metadata = _metadata(stream, sample)
    digest = metadata.get("source_digest")
    row |= {
        "mouth": source_file(metadata, identity),
        "source_digest": digest if isinstance(digest, str) else None,
    }
    return row, metadata


def _plain_shape(stream: IO[bytes], sample: Located, member: str) -> tuple[int, ...]:
    header = read_header(stream, sample.places[member], f"{sample.where}: {member}")
    stream.seek(sample.places[member].offset)
    if not header.shape or not is_plain_header(header, stream.read(NPY_HEADER_BYTES), NPY_HEADER_BYTES):
        raise Misfit(
            f"{sample.where}: {member} is {header.shape} {header.dtype.str}, its values begin at byte "
            f"{header.data_offset}; expected them row by row, little-endian, from byte {NPY_HEADER_BYTES} on"
        )
    return header.shape


def _metadata(stream: IO[bytes], sample: Located) -> dict[str, Any]:
    place = sample.places[METADATA_MEMBER]
    stream.seek(place.offset)
    try:
        return parse_metadata(stream.read(place.size))
    except ValueError as error:
        raise Misfit(f"{sample.where}: {METADATA_MEMBER}: {error}") from error


def _planned(sample: Located, split: str, utterance: str, metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        return plan_row(split, sample.tar.stem, sample.key, utterance, metadata)
    except ValueError as error:
        raise Misfit(f"{sample.where}: {METADATA_MEMBER}: {error}") from error
