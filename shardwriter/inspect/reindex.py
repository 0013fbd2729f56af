"""Make store.json, plans and indexes anew from the tars of a store that has lost them (inspect-shards --reindex).

Every byte of the tars is read and checked before anything is written, and indexes that are there are kept. What neither
they nor plans say, and tars do not hold, is lost: which utterances failed, and which were planned and not stored;
build-shards finds those again.
"""

import logging
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from tqdm import tqdm

from iianet.errors import StoreError
from shardwriter.corpus.embedding_npz import embedding_path
from shardwriter.format.digest import digest_of
from shardwriter.format.index import (
    MEMBER_COLUMNS,
    MemberPlace,
    ShardRecord,
    decode_index,
    encode_index,
    entries_of,
    index_table,
)
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    INDEX_SUFFIX,
    KEY_BYTES,
    METADATA_MEMBER,
    STORE_FILE,
    STORED_DTYPES,
    TAR_SUFFIX,
    VIEW_MARK,
    ShardName,
    escape_key,
    index_name,
    merged_index_name,
    parse_plan_name,
    parse_shard,
    parse_view_split,
    plan_name,
    sorted_splits,
    split_view_key,
    tar_name,
    unescape_key,
)
from shardwriter.format.npy import NpyHeader, read_npy_header
from shardwriter.format.plan import PLAN_SCHEMA, Plan, PlanHeader, decode_header, decode_rows, encode_plan, make_plan
from shardwriter.format.record import Identity, OtherVersion, StoreRecord
from shardwriter.format.sample import AUDIO_DTYPES, NPY_HEADER_BYTES, audio_entries, fps_of, parse_metadata
from shardwriter.format.tar import StrictTarInfo
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.verify_shard import verify_sample
from shardwriter.storage.folder import Folder
from shardwriter.storage.locate import open_folder
from shardwriter.store.identity import UNKNOWN_ENCODER
from shardwriter.store.snapshot import is_store, read_record
from shardwriter.store.transaction import Transaction

logger = logging.getLogger(__name__)

_KEY = re.compile(rf"[A-Za-z0-9_%-]{{1,{KEY_BYTES}}}({VIEW_MARK}[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What a folder still says: its record, and the headers of its plans that can be read, by id."""

    record: StoreRecord | None
    headers: Mapping[str, PlanHeader]


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """The plans that make the store: ids of the active ones, oldest first, and as store.json names them the others."""

    active: Sequence[str]
    pending: str | None
    retired: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """A tar that was read: its name, the rows of its index, and its rows of a plan without shard numbers."""

    name: ShardName
    size: int
    digest: str
    index: pa.Table
    planned: Sequence[dict[str, Any]]


def reindex(given: str, data_root: str | None = None) -> None:
    """Make a folder with a store's own tars a store again.

    Args:
        given: The folder.
        data_root: Where the paths in the samples' json start; by default as store.json says, if it is there.

    Raises:
        StoreError: There are no such tars, or one is damaged, or there is nothing to do.
    """
    folder = open_folder(given)
    tars = sorted(name for name in folder.files() if name.endswith(TAR_SUFFIX))
    names = [name for tar in tars if (name := parse_shard(tar.removesuffix(TAR_SUFFIX)))]
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
        chosen = _choose(folder, known, names)
        own = [name for name in names if name.plan_id in chosen.active]
        if not own:
            raise StoreError(
                f"{folder.name}: none of its tars belongs to a plan that {STORE_FILE} names; put back the {STORE_FILE} "
                "that belongs to them, or take it away"
            )
        identity = _identity(folder, own, known, chosen)
        shards = _read_shards(folder, own, identity, known)
        _warn_of_failures(folder, shards, known)
        root = data_root or (known.record.data_root if known.record else None)
        _write(folder, known, chosen, shards, identity, root)


def _is_whole(folder: Folder, names: Sequence[ShardName]) -> bool:
    try:
        store = InspectedStore.open(folder)
    except StoreError:
        return False
    snapshot = store.snapshot
    known = {shard for header in snapshot.headers.values() for shard in header.all_shard_names}
    others = [header for header in (snapshot.pending, *snapshot.retired) if header]
    unneeded = {shard for header in others for shard in header.all_shard_names}
    complete = {shard for entries in store.splits.values() for shard in entries.complete} | unneeded
    return not store.problems and {str(name) for name in names} <= complete & known


def _read_known(folder: Folder) -> _Known:
    try:
        record = read_record(folder) if is_store(folder) else None
    except StoreError as error:
        if isinstance(error.__cause__, OtherVersion):
            raise
        logger.warning("%s; it is made anew", error)
        record = None
    headers: dict[str, PlanHeader] = {}
    for name in sorted(folder.files()):
        if plan_id := parse_plan_name(name):
            try:
                with folder.open(name) as stream:
                    headers[plan_id] = decode_header(stream, folder.where(name))
            except StoreError as error:
                logger.warning("%s; it is made anew", error)
    return _Known(record=record, headers=headers)


def _choose(folder: Folder, known: _Known, names: Sequence[ShardName]) -> _Chosen:
    present, record = list(dict.fromkeys(name.plan_id for name in names)), known.record
    if record is None:
        return _choose_without_record(folder, known, present)
    named = [plan_id for name in record.plans if (plan_id := parse_plan_name(name))]
    others = {parse_plan_name(name) for name in record.named}
    lost = next((plan_id for plan_id in named if plan_id not in known.headers), None)
    active: list[str] = []
    for plan_id in named:
        if plan_id == lost:  # an interrupted --reindex has given some of its tars another name already
            kinds = {other: known.headers[other].kind for other in present if other in known.headers}
            active += [other for other in present if other not in others and kinds.get(other, "extend") == "extend"]
        if plan_id in present or plan_id in known.headers:
            active.append(plan_id)
    is_known = record.pending is not None and parse_plan_name(record.pending) in known.headers
    return _Chosen(active=active, pending=record.pending if is_known else None, retired=record.retired)


def _choose_without_record(folder: Folder, known: _Known, present: Sequence[str]) -> _Chosen:
    """A plan that replaces others is active where it is complete or they are gone, else pending."""
    written = {name.rpartition(".")[0] for name in folder.files()}
    replaced: list[str] = []
    unfinished: list[PlanHeader] = []
    for header in sorted(known.headers.values(), key=lambda header: (len(header.base), header.id)):
        base = [plan_id for name in header.base if (plan_id := parse_plan_name(name))]
        is_whole = set(header.all_shard_names) <= written
        if header.kind != "extend" and not is_whole and not set(base).isdisjoint(present):
            unfinished.append(header)
        elif header.kind != "extend":
            replaced += [plan_id for plan_id in base if plan_id not in replaced]
    left = {*present, *known.headers}.difference(replaced, (header.id for header in unfinished))
    if len(left) > 1 and not left <= known.headers.keys():
        logger.warning(
            "store.json and plans are lost, so nothing says which of %d builds is the newer one: where two have an "
            "utterance, the plan whose id comes last wins",
            len(left),
        )
    there = [plan_name(plan_id) for plan_id in replaced if plan_id in present or plan_id in known.headers]
    pending = [header.name for header in unfinished if {parse_plan_name(name) for name in header.base} <= left]

    def age(plan_id: str) -> tuple[bool, int, str]:
        """The active plan that has replaced others is the first one; each later one names those before it."""
        header = known.headers.get(plan_id)
        base = left.intersection(filter(None, map(parse_plan_name, header.base))) if header else ()
        return header is None or header.kind == "extend", len(base), plan_id

    return _Chosen(
        active=sorted(left, key=age),
        pending=pending[-1] if pending else None,
        retired=dict.fromkeys(there, datetime.now(UTC).isoformat(timespec="seconds")),
    )


def _identity(folder: Folder, names: Sequence[ShardName], known: _Known, chosen: _Chosen) -> Identity:
    """What is recorded; else what the first sample shows, with an unknown encoder."""
    found = {STORE_FILE: known.record.identity} if known.record else {}
    found |= {plan_name(it): known.headers[it].identity for it in chosen.active if it in known.headers}
    (first, identity), *others = found.items() or [("", None)]
    for name, other in others:
        assert identity is not None and other is not None
        if differences := [*identity.differences(other), *identity.storage_differences(other)]:
            raise StoreError(
                f"{folder.name}: {first} and {name} were made with different encoders, or store differently "
                f"({'; '.join(differences)}). Take one of them away, with its tars"
            )
    if identity is not None:
        return identity
    path = folder.path / tar_name(str(names[0]))
    samples = _samples(path)
    key = next(iter(samples))
    with path.open("rb") as stream:
        header = _npy_header(stream, path, key, samples[key][EMBEDDING_MEMBER])
        metadata = _metadata(stream, path, key, samples[key])
    fps = fps_of(metadata)
    return Identity(
        encoder=UNKNOWN_ENCODER,
        dtype=header.dtype.name,
        dim=header.shape[0],
        fps=25.0 if fps is None else fps,
        audio="embed" if AUDIO_MEMBER in samples[key] else "path",
    )


def _read_shards(folder: Folder, names: Sequence[ShardName], identity: Identity, known: _Known) -> list[_Shard]:
    planned = _planned(folder, known)
    paths = {name: folder.path / tar_name(str(name)) for name in names}
    total = sum(path.stat().st_size for path in paths.values())
    shards: list[_Shard] = []
    with tqdm(total=total, desc="checking", unit="B", unit_scale=True, delay=1.0, dynamic_ncols=True) as bar:
        for name, path in paths.items():
            shards.append(_read_shard(name, path, identity, planned.get(str(name))))
            bar.update(shards[-1].size)
    return shards


def _planned(folder: Folder, known: _Known) -> dict[str, pa.Table]:
    """Rows of the plans that are there, by shard."""
    planned: dict[str, pa.Table] = {}
    for header in known.headers.values():
        with folder.open(header.name) as stream:
            plan = Plan(header=header, table=decode_rows(stream, folder.where(header.name)))
        planned |= {task.shard: task.rows for task in plan.tasks()}
    return planned


def _read_shard(name: ShardName, path: Path, identity: Identity, task: pa.Table | None) -> _Shard:
    rows, planned = [], []
    samples = _samples(path)
    with path.open("rb") as stream:
        digest, size = digest_of(stream)
        for key, members in samples.items():
            metadata = _metadata(stream, path, key, members)
            if tuple(members) != identity.members(name.split):
                raise _foreign(path, f"{key} with {', '.join(members)}")
            rows.append(_index_row(stream, path, key, members, metadata, identity))
            planned.append(_plan_row(path, name.split, key, metadata))
        for entry in entries_of(name.split, str(name), index_table(rows)):
            if problems := verify_sample(stream, entry, identity.members(name.split), identity):
                raise StoreError(f"{path.parent}: {problems[0]}. Take this tar away, or copy it again")
    return _Shard(name=name, size=size, digest=digest, index=_index(path, digest, rows, task), planned=planned)


def _index(path: Path, digest: str, rows: Sequence[dict[str, Any]], task: pa.Table | None) -> pa.Table:
    """Index of a tar: the one that is there, which says more than the tar does, else one made anew."""
    found = None
    try:
        with path.with_suffix(INDEX_SUFFIX).open("rb") as stream:
            found, records = decode_index(stream, path.stem)
    except (OSError, StoreError):
        records = []
    if any(record.tar_digest != digest for record in records):
        raise StoreError(f"{path}: has changed since it was written; take this tar away, or copy it again")
    if task is None:
        return index_table(rows)
    keys = task["key"].to_pylist()
    if found is not None and found["key"].to_pylist() == keys:
        return found
    stored = {row["key"]: row for row in rows}
    if strange := sorted(stored.keys() - set(keys)):
        raise StoreError(f"{path}: has {strange[0]}, which its plan does not list; take this tar away")
    lost = {"frames": 0, "error": "is not in the tar, whose index was lost"}  # so the next build tries it again
    return index_table([stored.get(key) or {**lost, "key": key} for key in keys])


def _samples(path: Path) -> dict[str, dict[str, MemberPlace]]:
    """Where the members of each sample lie. Raises StoreError where the tar is not as a store writes it."""
    found: dict[str, dict[str, MemberPlace]] = {}
    previous = None
    try:
        with tarfile.open(path, "r:", tarinfo=StrictTarInfo) as archive:
            for info in archive:
                key, _, member = info.name.partition(".")
                is_plain = info.isreg() and info.offset + tarfile.BLOCKSIZE == info.offset_data
                if not is_plain or member not in MEMBER_COLUMNS or not _is_key(key, path):
                    raise _foreign(path, info.name)
                if (key in found and key != previous) or member in found.setdefault(key, {}):
                    raise _foreign(path, info.name)
                found[key][member] = MemberPlace(info.offset_data, info.size)
                previous = key
    except (tarfile.TarError, OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read to its end ({error}). Copy it again, or take it away") from error
    if not found:
        raise StoreError(f"{path}: holds no samples; take it away")
    return found


def _is_key(key: str, path: Path) -> bool:
    name = parse_shard(path.stem)
    assert name is not None, path
    return _KEY.fullmatch(key) is not None and split_view_key(key)[1] == parse_view_split(name.split)[1]


def _foreign(path: Path, member: str) -> StoreError:
    return StoreError(f"{path}: has {member}, which is not as a store's own tars are; take it away")


def _index_row(
    stream: IO[bytes],
    path: Path,
    key: str,
    members: Mapping[str, MemberPlace],
    metadata: Mapping[str, Any],
    identity: Identity,
) -> dict[str, Any]:
    row: dict[str, Any] = {"key": key, "frames": 0}
    for member, place in members.items():
        row[f"{MEMBER_COLUMNS[member]}_offset"], row[f"{MEMBER_COLUMNS[member]}_length"] = place
        if member != METADATA_MEMBER:
            shape = _npy_header(stream, path, key, place).shape
            row |= {"frames": shape[-1]} if member == EMBEDDING_MEMBER and shape else {}
    mouth, digest = metadata.get("mouth"), metadata.get("source_digest")
    if isinstance(mouth, str) and mouth:
        imported = identity.is_imported and "reindexed" not in identity.encoder
        row["mouth"] = embedding_path(mouth) if imported else mouth
    row["source_digest"] = digest if isinstance(digest, str) else None
    return row


def _npy_header(stream: IO[bytes], path: Path, key: str, place: MemberPlace) -> NpyHeader:
    """Header of an npy member, which must lie as stores write it: readers take the values from a fixed distance."""
    stream.seek(place.offset)
    start = stream.read(NPY_HEADER_BYTES)
    header = read_npy_header(start, f"{path}: {key}")
    is_plain = start[6:8] == b"\x01\x00" and header.data_offset == NPY_HEADER_BYTES and not header.column_major
    if not is_plain or not header.shape or header.dtype.name not in (*STORED_DTYPES, *AUDIO_DTYPES):
        raise _foreign(path, f"{key}, an npy of another layout")
    return header


def _metadata(stream: IO[bytes], path: Path, key: str, members: Mapping[str, MemberPlace]) -> dict[str, Any]:
    if METADATA_MEMBER not in members:
        raise _foreign(path, f"{key} without {METADATA_MEMBER}")
    offset, size = members[METADATA_MEMBER]
    stream.seek(offset)
    try:
        return parse_metadata(stream.read(size))
    except ValueError as error:
        raise StoreError(f"{path}: {key}: {METADATA_MEMBER}: {error}") from error


def _plan_row(path: Path, split: str, key: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    base, name, mouth = split_view_key(key)[0], metadata.get("utterance"), metadata.get("mouth")
    try:
        audio = audio_entries(metadata)
    except ValueError as error:
        raise StoreError(f"{path}: {key}: {METADATA_MEMBER}: {error}") from error
    return {
        "split": split,
        "key": key,
        "utterance": name if isinstance(name, str) and escape_key(name) == base else unescape_key(base),
        "mouth": mouth if isinstance(mouth, str) else "",
        "audio": audio,
    }


def _warn_of_failures(folder: Folder, shards: Sequence[_Shard], known: _Known) -> None:
    """Say what indexes of lost plans record that tars cannot: which utterances could not be stored."""
    lost, kept = 0, {str(shard.name) for shard in shards}
    for name in sorted(folder.files()):
        shard = parse_shard(name.removesuffix(INDEX_SUFFIX)) if name.endswith(INDEX_SUFFIX) else None
        if shard is not None and shard.plan_id not in known.headers:
            try:
                with folder.open(name) as stream:
                    rows, _ = decode_index(stream, folder.where(name))
            except StoreError:
                continue
            failed = len(rows) - rows["error"].null_count
            lost += failed if name.removesuffix(INDEX_SUFFIX) in kept else len(rows)
    if lost:
        logger.warning("%s: %d utterances are recorded as failed; build-shards takes them for new", folder.name, lost)


def _write(
    folder: Folder,
    known: _Known,
    chosen: _Chosen,
    shards: Sequence[_Shard],
    identity: Identity,
    data_root: str | None,
) -> None:
    """Write plans and indexes, and commit one plan after the other.

    As long as store.json names a lost plan, nothing opens the store but the next --reindex.
    """
    record = StoreRecord(
        identity=identity,
        data_root=data_root,
        plans=tuple(map(plan_name, chosen.active)),
        pending=chosen.pending,
        retired=chosen.retired,
    )
    folder.commit(STORE_FILE, record.to_bytes(), None)
    for position, plan_id in enumerate(chosen.active):
        own = [shard for shard in shards if shard.name.plan_id == plan_id]
        names = list(record.plans)
        if plan_id not in known.headers:  # another one, of what is there, under whose name the tars move
            plan = _plan_of(own, names[:position], identity)
            own = _renamed(folder, own, plan.header.id)
            folder.write(plan.header.name, encode_plan(plan))
            names[position] = plan.header.name
        for shard in own:
            name, rows = str(shard.name), len(shard.index)
            facts = ShardRecord(shard=name, tar_size=shard.size, tar_digest=shard.digest, rows=rows)
            folder.write(index_name(name), encode_index(shard.index, [facts]))
        record = replace(record, plans=tuple(names))
        folder.commit(STORE_FILE, record.to_bytes(), None)
    folder.delete(merged_index_name(split) for split in sorted_splits({shard.name.split for shard in shards}))
    transaction = Transaction(folder, float("inf"))
    transaction.open()
    found = transaction.conclude()
    named = ", ".join(f"{split} {len(entries.newest_rows):,}" for split, entries in found.items())
    logger.info("%s: is a store again, with these utterances: %s", folder.name, named)


def _plan_of(shards: Sequence[_Shard], base: Sequence[str], identity: Identity) -> Plan:
    numbers: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for shard in sorted(shards, key=lambda shard: shard.name):
        number = numbers.setdefault(shard.name.split, 0)
        rows += [{**row, "shard": number} for row in shard.planned]
        numbers[shard.name.split] += 1
    ordered = [row for split in sorted_splits(numbers) for row in rows if row["split"] == split]
    table = pa.Table.from_pylist(ordered, schema=PLAN_SCHEMA)
    return make_plan(kind="extend", base=base, identity=identity, manifest_digests={}, table=table)


def _renamed(folder: Folder, shards: Sequence[_Shard], plan_id: str) -> list[_Shard]:
    """Move tars under the names of their new plan, and delete indexes of their old names."""
    moved: list[_Shard] = []
    numbers: dict[str, int] = {}
    for shard in sorted(shards, key=lambda shard: shard.name):
        number = numbers.setdefault(shard.name.split, 0)
        name = ShardName(shard.name.split, plan_id, number)
        numbers[shard.name.split] += 1
        if name != shard.name:
            folder.delete([index_name(str(shard.name))])
            (folder.path / tar_name(str(shard.name))).rename(folder.path / tar_name(str(name)))
        moved.append(_Shard(name=name, size=shard.size, digest=shard.digest, index=shard.index, planned=shard.planned))
    return moved
