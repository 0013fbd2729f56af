"""Read a whole store and compare every byte with what the indexes say (inspect-shards --verify)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import pyarrow as pa
from tqdm import tqdm

from iianet.errors import StoreError
from iianet.wording import counted
from shardwriter.format.index import read_index
from shardwriter.format.names import (
    INDEX_SUFFIX,
    TAR_SUFFIX,
    TEMPORARY_PREFIX,
    merged_index_name,
    plan_number,
    shard_number,
)
from shardwriter.format.plan import ShardTask
from shardwriter.inspect.contents import Contents, entries_of
from shardwriter.inspect.verify_tar import verify_tar
from shardwriter.storage.mirror import drop_copies, store_name, tar_sizes


@dataclass(kw_only=True)
class Verification:
    """What reading everything found.

    Attributes:
        shards: Complete shards that were read.
        samples: Stored samples in them, superseded ones too.
        problems: What contradicts an index, naming shard and key.
        damaged: Shards with problems.
        notes: Files that do not count: harmless.
    """

    shards: int = 0
    samples: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self, store: Path) -> list[str]:
        """For people: how much was read, and how to mend what is damaged. Problems are shown with all others."""
        found = counted(len(self.problems), "problem") if self.problems else "all as the indexes say"
        at = store_name(store)
        lines = [f"Verified {self.samples:,} samples in {self.shards:,} shards: {found}."]
        lines += [f"  {note}" for note in self.notes]
        if self.damaged:
            files = [f"{at}/{shard}{suffix}" for shard in self.damaged for suffix in (INDEX_SUFFIX, TAR_SUFFIX)]
            lines += ["To mend it, delete these and run build-shards again:", *(f"  {file}" for file in files)]
        return lines


def verify(contents: Contents) -> Verification:
    """Read every complete shard of the plans that count."""
    found = Verification(notes=_leftovers(contents))
    tasks = [task for plan in contents.catalog.plans for task in plan.tasks(contents.catalog.splits)]
    complete = [task for task in tasks if _index(contents.store, task.shard).is_file()]
    behind = tar_sizes(contents.store)
    tars = [contents.store / f"{task.shard}{TAR_SUFFIX}" for task in complete]
    drop_copies(contents.store)  # what lies behind them is to be verified
    total = sum(path.stat().st_size if path.is_file() else behind.get(path.name, 0) for path in tars)
    with tqdm(total=total, desc="verifying", unit="B", unit_scale=True, dynamic_ncols=True, disable=not total) as bar:
        for task in complete:
            problems = _verify_shard(contents, task, found, bar.update)
            found.problems += problems
            found.damaged += [task.shard] if problems else []
    for split in contents.splits:
        found.problems += _merged_index(contents, split)
    return found


def _verify_shard(
    contents: Contents, task: ShardTask, found: Verification, progress: Callable[[int], object]
) -> list[str]:
    index = _index(contents.store, task.shard)
    try:
        table, records = read_index(index)
    except StoreError as error:
        return [str(error)]
    names = [record.shard for record in records]
    if names != [task.shard]:
        return [f"{index.name}: is the index of {', '.join(names) or 'nothing'}; expected {task.shard}"]
    entries = entries_of(task.split, task.shard, table)
    stored = [entry for entry in entries if entry.error is None]
    found.shards += 1
    found.samples += len(stored)
    problems = []
    if [entry.key for entry in entries] != task.rows["key"].to_pylist():
        problems.append(f"{index.name}: lists other utterances than {task.plan} planned for this shard")
    if stored:
        members = contents.members_of(task.split)
        problems += verify_tar(contents.store, records[0], stored, members, contents.identity, progress)
    return problems


def _merged_index(contents: Contents, split: str) -> Iterator[str]:
    """A merged index is used where it lists the complete shards, so then it must say what theirs say."""
    path = contents.store / merged_index_name(split)
    shards = contents.splits[split].shards
    try:
        merged, records = read_index(path) if path.is_file() else (None, [])
        own = [read_index(_index(contents.store, record.shard)) for record in shards]
    except StoreError:
        return  # the one that cannot be read is among the problems already
    if merged is None or not own or [record.shard for record in records] != [record.shard for record in shards]:
        return
    if records != [each[0] for _, each in own] or not merged.equals(pa.concat_tables(table for table, _ in own)):
        yield f"{path.name}: contradicts the indexes of its shards; delete it, build-shards merges them again"


def _leftovers(contents: Contents) -> list[str]:
    """Files that no plan that counts knows of, or that a build left half done."""
    generations = contents.generations
    begun = [plan for plan in (generations.replacement, generations.compaction) if plan]
    plans = [*contents.catalog.plans, *begun, *generations.retired]
    planned = {shard for plan in plans for shard in plan.shards}
    names = {plan.name for plan in plans}
    copies = generations.compaction.shards if generations.compaction else {}
    notes = []
    there = {path.name for path in contents.store.iterdir()}.union(tar_sizes(contents.store))
    for name in sorted(there):
        stem, suffix = PurePath(name).stem, PurePath(name).suffix
        is_shard = suffix in (INDEX_SUFFIX, TAR_SUFFIX) and shard_number(stem) is not None
        if name.startswith(TEMPORARY_PREFIX):
            notes.append(f"{name}: left by a build that died, or in use by one that runs")
        elif is_shard and stem not in planned:
            notes.append(f"{name}: no plan lists this shard, so it does not count")
        elif is_shard and suffix == TAR_SUFFIX and f"{stem}{INDEX_SUFFIX}" not in there:
            command = "build-shards --compact" if stem in copies else "build-shards"
            notes.append(f"{name}: has no index, so it does not count; {command} writes it again")
        elif plan_number(name) is not None and name not in names:
            notes.append(f"{name}: this plan does not count; build-shards deletes it")
    return notes


def _index(store: Path, shard: str) -> Path:
    return store / f"{shard}{INDEX_SUFFIX}"
