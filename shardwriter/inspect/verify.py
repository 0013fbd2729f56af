"""Read a whole store and compare every byte with what the indexes say (inspect-shards --verify)."""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from tqdm import tqdm

from iianet.errors import StoreError
from iianet.wording import counted
from shardwriter.format.files import TEMPORARY_NAME
from shardwriter.format.index import entries_of
from shardwriter.format.names import TAR_SUFFIX, index_name, merged_index_name, parse_shard, plan_id_of, tar_name
from shardwriter.format.plan import ShardTask
from shardwriter.inspect.inspected import InspectedStore
from shardwriter.inspect.report import Section
from shardwriter.inspect.verify_shard import verify_tar
from shardwriter.store.entries import read_index, read_shard_index


def verify(store: InspectedStore) -> Section:
    """Read every complete shard of the active plans."""
    snapshot = store.snapshot
    tasks = [task for header in snapshot.active for task in snapshot.plan(header).tasks()]
    complete = [task for task in tasks if index_name(task.shard) in snapshot.files]
    sizes = [snapshot.files[tar_name(task.shard)].size for task in complete if tar_name(task.shard) in snapshot.files]
    total, read, samples = sum(sizes), 0, 0
    problems = list(store.unreadable)
    damaged: list[str] = []
    with tqdm(total=total, desc="verifying", unit="B", unit_scale=True, dynamic_ncols=True, disable=not total) as bar:
        for task in complete:
            try:
                count, found = _verify_shard(store, task, bar.update)
                read, samples = read + 1, samples + count
            except StoreError as error:
                found = [str(error)]
            problems += found
            damaged += [task.shard] if found else []
    for split, entries in store.splits.items():
        problems += _merged_index(store, split, [record.shard for record in entries.shards])
    problems = list(dict.fromkeys(problems))
    notes = _unused_files(store)
    said = counted(len(problems), "problem") if problems else "all as the indexes say"
    lines = [f"Verified {samples:,} samples in {read:,} shards: {said}.", *(f"  {note}" for note in notes)]
    if damaged:
        files = [f"{store.name}/{name(shard)}" for shard in damaged for name in (index_name, tar_name)]
        lines += [f"To fix it, delete these and {store.identity.writes_again}:", *(f"  {file}" for file in files)]
    return Section(text="\n".join(lines), fields={"notes": notes}, problems=problems)


def _verify_shard(store: InspectedStore, task: ShardTask, progress: Callable[[int], object]) -> tuple[int, list[str]]:
    """Samples in a shard, and problems. Raises StoreError where its index cannot be read, or is another's."""
    name = index_name(task.shard)
    try:
        table, record = read_shard_index(store.storage, task.shard, None, store.identity)
    except FileNotFoundError as error:
        raise StoreError(
            f"{store.storage.where(name)}: is gone; it was there when the store was opened. Wait for a running build, "
            "or put the file back, then verify again"
        ) from error
    entries = entries_of(task.split, task.shard, table)
    stored = [entry for entry in entries if entry.error is None]
    problems = []
    if [entry.key for entry in entries] != task.rows["key"].to_pylist():
        problems.append(f"{name}: lists other utterances than its plan")
    if stored:
        store.storage.forget(tar_name(task.shard), record.tar_digest)  # what lies behind a copy is verified
        problems += verify_tar(store, record, stored, progress)
    return len(stored), problems


def _merged_index(store: InspectedStore, split: str, shards: Sequence[str]) -> Iterator[str]:
    """A merged index is used where it lists the complete shards, so then it must say what theirs say."""
    name = merged_index_name(split)
    try:
        merged, records = read_index(store.storage, name, None, store.identity, shards)
        own = [read_shard_index(store.storage, shard, None, store.identity) for shard in shards]
    except (FileNotFoundError, StoreError):
        return  # one that cannot be read is among the problems already; none need be there
    if not own or [record.shard for record in records] != list(shards):
        return
    if records != [record for _, record in own] or not merged.equals(pa.concat_tables(table for table, _ in own)):
        yield f"{name}: contradicts the indexes of its shards; delete it, build-shards merges them again"


def _unused_files(store: InspectedStore) -> list[str]:
    """Files that belong to no plan of the store, or that a build left half done."""
    snapshot, pending = store.snapshot, store.pending
    named = {plan_id_of(name) for name in snapshot.record.named}
    planned = {header.id: set(header.all_shard_names) for header in snapshot.headers.values()}
    notes = []
    left = {path.name for path in store.storage.staging.glob("*") if TEMPORARY_NAME.fullmatch(path.name)}
    for name in sorted({*snapshot.files, *left}):
        plan_id, (shard, _, suffix) = plan_id_of(name), name.rpartition(".")
        if name in left:
            notes.append(f"{name}: left by a build that died, or in use by one that runs")
        elif plan_id is None:
            continue
        elif plan_id not in named:
            what = f"{name}: belongs to no plan of this store, so it is not used"
            notes.append(f"{what}; build-shards deletes it if a build of this store left it")
        elif parse_shard(shard) and shard not in planned.get(plan_id, {shard}):
            notes.append(f"{name}: its plan lists no such shard, so it is not used")
        elif f".{suffix}" == TAR_SUFFIX and index_name(shard) not in snapshot.files:
            is_copy = pending is not None and pending.kind == "compact" and plan_id == pending.id
            command = "build-shards --compact" if is_copy else "build-shards"
            notes.append(f"{name}: has no index, so it is not used; {command} writes it again")
    return notes
