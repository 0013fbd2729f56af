"""Make store.json, plans and indexes again from the tars of a store that has lost them (inspect-shards --reindex).

Every byte of the tars is read and checked before anything is written, and indexes that are there are kept. What neither
they nor plans say, and tars do not hold, is lost: which utterances failed, and which were planned and not stored;
build-shards finds those again.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby, pairwise
from typing import NamedTuple

import pyarrow as pa
from tqdm import tqdm

from iianet.errors import StoreError, UnreadableError
from shardwriter.format.document import MOST_BYTES
from shardwriter.format.index import ShardRecord, decode_shard_index, encode_index, index_table
from shardwriter.format.names import (
    INDEX_SUFFIX,
    STORE_FILE,
    TAR_SUFFIX,
    ShardName,
    index_name,
    merged_index_name,
    parse_plan_name,
    parse_shard,
    plan_name,
    tar_name,
)
from shardwriter.format.plan import PLAN_SCHEMA, PlanHeader, decode_plan, encode_plan, make_plan
from shardwriter.format.record import Identity, OtherVersion, StoreRecord
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.own_tar import OwnTar, read_own_tar, shown_identity
from shardwriter.storage.folder import Folder
from shardwriter.storage.locate import open_folder
from shardwriter.store.snapshot import is_store, read_record
from shardwriter.store.transaction import Transaction

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What a folder still says beside its tars: its record, and of the plans and indexes those that can be read.

    Headers by the plan's file name; keys that these plans list, and indexes, by shard; data_root of a record that was
    edited, too.
    """

    record: StoreRecord | None
    data_root: str | None
    headers: Mapping[str, PlanHeader]
    keys: Mapping[str, pa.ChunkedArray]
    indexes: Mapping[ShardName, tuple[pa.Table, ShardRecord]]


class _Chosen(NamedTuple):
    """The plans of the store, lost ones too, as its record will name them."""

    plans: tuple[str, ...]
    pending: str | None
    retired: Mapping[str, str]


def reindex(given: str, data_root: str | None = None) -> None:
    """Make a folder with a store's own tars a store again.

    Args:
        given: The folder.
        data_root: Where the paths in the samples' json start; by default as store.json says, if it is there.

    Raises:
        StoreError: It is no folder, has no such tars, or a damaged one, or there is nothing to do.
    """
    folder = open_folder(
        given,
        "--reindex works on a folder; copy the store to one, run it there, and put that folder in place of what the "
        "bucket has, since tars may have other names then",
    )
    files = folder.files()
    tars = [name for name in files if name.endswith(TAR_SUFFIX)]
    names = sorted(name for tar in tars if (name := parse_shard(tar.removesuffix(TAR_SUFFIX))))
    if not names:
        what = f"its {len(tars)} tars are not named as a store's" if tars else "holds no tars"
        raise StoreError(
            f"{folder.name}: {what}; --reindex makes a store's own tars a store again. Of tars made by others, "
            "shardwriter.write_store makes one: see examples/foreign_tars.py"
        )
    if _is_whole(folder, names):
        raise StoreError(f"{folder.name}: is a store, and every tar in it has its index; there is nothing to do")
    with folder.write_lock():
        known = _read_known(folder)
        chosen = _choose(folder, known, list(dict.fromkeys(map(_plan_of, names))))
        kept = [name for name in names if _plan_of(name) in chosen.plans]
        if not kept:
            raise StoreError(
                f"{folder.name}: none of its tars belongs to a plan that {STORE_FILE} names; put back the {STORE_FILE} "
                "that belongs to them, or take it away"
            )
        identity = _recorded_identity(folder, known, chosen) or shown_identity(folder.path, kept[0])
        shards: list[OwnTar] = []
        total = sum(files[tar_name(str(name))].size for name in kept)
        with tqdm(total=total, desc="checking", unit="B", unit_scale=True, delay=1.0, dynamic_ncols=True) as bar:
            for name in kept:
                shard = read_own_tar(folder.path, name, identity)
                shards.append(replace(shard, index=_index(folder, shard, known)))
                bar.update(shard.size)
        _warn_of_failures(folder, shards, known)
        root = data_root or known.data_root
        if root is None and any(shard.planned[0]["mouth"] for shard in shards):
            logger.warning(
                "%s: %s is lost, so nothing says where the paths of the corpus start; give --data_root to record it",
                folder.name,
                STORE_FILE,
            )
        _write(folder, StoreRecord(identity=identity, data_root=root, **chosen._asdict()), known, shards)


def _plan_of(name: ShardName) -> str:
    return plan_name(name.plan_id)


def _is_whole(folder: Folder, names: Sequence[ShardName]) -> bool:
    try:
        store = InspectedStore.open(folder)
    except StoreError:
        return False
    record = store.snapshot.record
    complete = {shard for entries in store.splits.values() for shard in entries.complete}
    needed = {str(name) for name in names if _plan_of(name) not in (record.pending, *record.retired)}
    return not store.problems and needed <= complete


def _note_made_anew(where: str, error: StoreError) -> None:
    logger.warning("%s: is damaged, and is made anew from the tars (%s)", where, error.__cause__ or error)


def _read_known(folder: Folder) -> _Known:
    record, data_root = None, None
    headers: dict[str, PlanHeader] = {}
    keys: dict[str, pa.ChunkedArray] = {}
    indexes: dict[ShardName, tuple[pa.Table, ShardRecord]] = {}
    try:
        record = read_record(folder) if is_store(folder) else None
        data_root = record.data_root if record else None
    except UnreadableError:
        raise
    except StoreError as error:
        if isinstance(error.__cause__, OtherVersion):
            raise
        _note_made_anew(folder.where(STORE_FILE), error)
        with suppress(ValueError, OtherVersion), folder.open(STORE_FILE) as stream:
            data_root = StoreRecord.from_bytes(stream.read(MOST_BYTES), is_sealed=False).data_root
            logger.warning("%s: data_root is %s, as it says; give --data_root for another", folder.name, data_root)
    for name in sorted(folder.files()):
        shard = parse_shard(name.removesuffix(INDEX_SUFFIX)) if name.endswith(INDEX_SUFFIX) else None
        if shard is None and parse_plan_name(name) is None:
            continue
        with folder.open(name) as stream:  # what cannot be read must not be written over
            try:
                if shard is not None:
                    indexes[shard] = decode_shard_index(stream, folder.where(name), str(shard))
                else:
                    plan = decode_plan(stream, folder.where(name))
                    headers[name] = plan.header
                    keys |= {task.shard: task.rows["key"] for task in plan.tasks()}
            except UnreadableError:
                raise
            except StoreError as error:
                _note_made_anew(folder.where(name), error)
    return _Known(record=record, data_root=data_root, headers=headers, keys=keys, indexes=indexes)


def _choose(folder: Folder, known: _Known, present: Sequence[str]) -> _Chosen:
    """The plans of the store, where `present` are those that tars belong to."""
    record = known.record
    if record is None:
        return _choose_without_record(folder, known, present)
    plans = list(record.plans)
    lost = next((name for name in plans if name not in known.headers), None)
    if lost is not None:  # an interrupted --reindex has given some of its tars another name already
        unnamed = [name for name in present if name not in record.named]
        added = [name for name in unnamed if name not in known.headers or known.headers[name].kind == "extend"]
        plans[plans.index(lost) : plans.index(lost)] = added
    return _Chosen(
        plans=tuple(name for name in plans if name in present or name in known.headers),
        pending=record.pending if record.pending in known.headers else None,
        retired=record.retired,
    )


def _choose_without_record(folder: Folder, known: _Known, present: Sequence[str]) -> _Chosen:
    """A plan that replaces others is active where it is complete or they are gone, else pending."""
    written = {name.rpartition(".")[0] for name in folder.files()}
    replacing = {name: header for name, header in known.headers.items() if header.kind != "extend"}
    unfinished = {
        name: set(header.base)
        for name, header in replacing.items()
        if not written.issuperset(header.all_shard_names) and not set(header.base).isdisjoint(present)
    }
    replaced = [base for name, header in replacing.items() if name not in unfinished for base in header.base]
    there = {*present, *known.headers}
    active = there.difference(replaced, unfinished)
    if len(active) > 1 and not active <= known.headers.keys():
        logger.warning(
            "store.json and plans are lost, so nothing says which of %d builds is the newer one: where two have an "
            "utterance, the plan whose id comes last wins",
            len(active),
        )

    # The active plan that has replaced others is the first one; each later one names those before it.
    bases = {name: active.intersection(header.base) for name, header in known.headers.items()}
    oldest_first = sorted(active, key=lambda name: (name not in replacing, len(bases.get(name, ())), name))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return _Chosen(
        plans=tuple(oldest_first),
        pending=next((name for name, base in unfinished.items() if base <= active), None),
        retired={name: now for name in replaced if name in there},
    )


def _recorded_identity(folder: Folder, known: _Known, chosen: _Chosen) -> Identity | None:
    """What store.json and the active plans agree on; None where all are lost."""
    found = {STORE_FILE: known.record.identity} if known.record else {}
    found |= {name: known.headers[name].identity for name in chosen.plans if name in known.headers}
    for (first, ours), (second, theirs) in pairwise(found.items()):
        if differences := ours.differences(theirs):
            raise StoreError(
                f"{folder.name}: {first} and {second} were made with different encoders, or store differently "
                f"({'; '.join(differences)}). Take one of them away, with its tars"
            )
    return next(iter(found.values()), None)


def _index(folder: Folder, shard: OwnTar, known: _Known) -> pa.Table:
    """Index of a shard: the one that is there, which says more than the tar does, else one of all that is planned."""
    where = folder.where(tar_name(str(shard.name)))
    found, record = known.indexes.get(shard.name, (None, None))
    if record is not None and record.tar_digest != shard.digest:
        raise StoreError(f"{where}: has changed since it was written; take this tar away, or copy it again")
    if str(shard.name) not in known.keys:
        return shard.index
    planned = known.keys[str(shard.name)].to_pylist()
    if found is not None and found["key"].to_pylist() == planned:
        return found
    stored = {row["key"]: row for row in shard.index.to_pylist()}
    if strange := sorted(stored.keys() - set(planned)):
        raise StoreError(f"{where}: has {strange[0]}, which its plan does not list; take this tar away")
    lost = {"frames": 0, "error": "is not in the tar, whose index was lost"}  # so the next build tries it again
    return index_table([stored.get(key) or {**lost, "key": key} for key in planned])


def _warn_of_failures(folder: Folder, shards: Sequence[OwnTar], known: _Known) -> None:
    """Say what indexes of lost plans record that tars cannot: which utterances could not be stored."""
    kept = {shard.name for shard in shards}
    lost = sum(
        len(rows) - (rows["error"].null_count if name in kept else 0)
        for name, (rows, _) in known.indexes.items()
        if _plan_of(name) not in known.headers
    )
    if lost:
        logger.warning("%s: %d utterances are recorded as failed; build-shards takes them for new", folder.name, lost)


def _write(folder: Folder, record: StoreRecord, known: _Known, shards: Sequence[OwnTar]) -> None:
    """Write plans and indexes, and commit one plan after the other.

    As long as store.json names a lost plan, nothing opens the store but the next --reindex.
    """
    folder.commit(STORE_FILE, record.to_bytes(), folder.version(STORE_FILE))
    for position, plan in enumerate(record.plans):
        own = [shard for shard in shards if _plan_of(shard.name) == plan]
        if plan not in known.headers:
            made, own = _replace_lost_plan(folder, own, record.plans[:position], record.identity)
            record = replace(record, plans=(*record.plans[:position], made, *record.plans[position + 1 :]))
        for shard in own:
            name, rows = str(shard.name), len(shard.index)
            facts = ShardRecord(shard=name, tar_size=shard.size, tar_digest=shard.digest, rows=rows)
            folder.write(index_name(name), encode_index(shard.index, [facts]))
        folder.commit(STORE_FILE, record.to_bytes(), folder.version(STORE_FILE))
    folder.delete({merged_index_name(shard.name.split) for shard in shards})
    transaction = Transaction(folder, float("inf"))
    transaction.open()
    found = transaction.conclude()
    named = ", ".join(f"{split} {len(entries.newest_rows):,}" for split, entries in found.items())
    logger.info("%s: is a store again, with these utterances: %s", folder.name, named)


def _replace_lost_plan(
    folder: Folder, shards: Sequence[OwnTar], base: Sequence[str], identity: Identity
) -> tuple[str, list[OwnTar]]:
    """Write another plan, of what is there, and move the tars under the names that it gives them.

    In a plan the shards of a split are numbered without a gap.
    """
    splits = groupby(shards, key=lambda shard: shard.name.split)
    numbered = [item for _, group in splits for item in enumerate(group)]
    rows = [{**row, "shard": number} for number, shard in numbered for row in shard.planned]
    table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    plan = make_plan(kind="extend", base=base, identity=identity, manifest_digests={}, table=table)
    moved = [replace(shard, name=shard.name._replace(plan_id=plan.header.id, number=n)) for n, shard in numbered]
    for old, new in zip(shards, moved, strict=True):
        if new.name != old.name:
            folder.delete([index_name(str(old.name))])
            (folder.path / tar_name(str(old.name))).rename(folder.path / tar_name(str(new.name)))
    folder.write(plan.header.name, encode_plan(plan))
    return plan.header.name, moved
