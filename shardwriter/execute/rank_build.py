"""A build by processes that were started together and share a folder: the ranks of torchrun, Slurm or a script.

The first rank to come plans, and publishes what is to be written. Each claims shards until none is left, so that a fast
one takes more and none is waited for. The last one to leave writes what dead ranks had claimed, merges and sums up.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import xxhash

from iianet.config.schema import Config
from shardwriter.build.build import Build, prepare
from shardwriter.build.options import BuildOptions
from shardwriter.build.report import BuildReport
from shardwriter.build.work import Work
from shardwriter.corpus.manifest import load_manifests
from shardwriter.encode.job import Recipe
from shardwriter.execute.rank import Rank
from shardwriter.execute.rank_lock import JobState, RankLock, rank_lock
from shardwriter.format.files import temporary_path
from shardwriter.format.names import INDEX_SUFFIX, Identity
from shardwriter.format.plan import ShardTask, read_plan
from shardwriter.storage.lock import drop_leftovers
from shardwriter.store.catalog import splits_of

logger = logging.getLogger(__name__)

_OWN = ("device", "executor", "outlet")
"""Options that each rank may have of its own."""
_LISTS = ("train", "valid", "test")
_SUMMED = ("shards", "stored_bytes", "audio_bytes", "seconds")


def build_as_rank(config: Config, store: Path, options: BuildOptions, rank: Rank) -> tuple[BuildReport, bool]:
    """Make or continue a store with the other ranks of a job.

    Returns:
        What this rank did; or, where it is the last one, what all did, and True.

    Raises:
        FeatureStoreError: This rank could not go on. What it had claimed is left to the last one, or the next run.
    """
    asked = _asked(config, options)
    with rank_lock(store, rank, asked) as lock:
        with lock.turn():
            is_alone = lock.is_alone()
            if is_alone and lock.is_late():
                _note_late(store, rank, lock)
                return BuildReport(), False
            build = _begin(config, store, options, rank, asked, lock) if is_alone else None
            state = lock.read() if build else lock.join()
        build = build or _join(config, store, options, state)
        tasks = _tasks(store, state)
        build.run_tasks(_claimed(lock, tasks), total=None, shown=rank.number == 0)
        with lock.turn():
            state = lock.read()
            state.counts[str(rank.number)] = _counts(build.report)
            lock.write(state)
            if not lock.is_alone():
                lock.leave()
                return build.report, False
            _end(build, state, tasks)  # within the turn: a rank that comes late waits, and finds nothing to do
            state.done = True
            lock.write(state)
        return build.report, True


def _asked(config: Config, options: BuildOptions) -> str:
    """Digest of what must be the same for all ranks of a job."""
    own = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in _OWN}
    data = config.datamodule.data_config
    shared = [config.shardwriter, config.videonet, *(getattr(data, f"{split}_dir") for split in _LISTS)]
    return xxhash.xxh3_64_hexdigest(repr((own, shared)).encode())


def _note_late(store: Path, rank: Rank, lock: RankLock) -> None:
    """Take part, with nothing: planning anew would do an --overwrite twice."""
    state = lock.read()
    state.counts[str(rank.number)] = _counts(BuildReport())
    lock.write(state)
    logger.info("%s: the other ranks were done when this one came", store)


def _begin(config: Config, store: Path, options: BuildOptions, rank: Rank, asked: str, lock: RankLock) -> Build:
    """Plan, and publish what is to be written."""
    drop_leftovers(store)
    build = prepare(config, store, options)
    build.open()
    plans, work = build.publish_next()
    shards = [task.shard for task in build.wanted_tasks(plans, list(work))]
    listed = temporary_path(store / "tasks.json")
    with listed.open("w", encoding="utf-8") as stream:
        json.dump(shards, stream)
        stream.flush()
        os.fsync(stream.fileno())
    lock.begin(
        JobState(
            job=rank.job,
            asked=asked,
            identity=asdict(build.identity),
            data_root=str(build.data_root),
            plans=[plan.name for plan in plans],
            tasks=listed.name,
            planned=_planned(work),
        )
    )
    return build


def _join(config: Config, store: Path, options: BuildOptions, state: JobState) -> Build:
    """Take part in what another rank has planned."""
    recipe = Recipe(store=store, data_root=Path(state.data_root), config=config, identity=Identity(**state.identity))
    return Build(recipe, options, {}, recipe.load(options.device))


def _tasks(store: Path, state: JobState) -> list[ShardTask]:
    """What the job writes."""
    plans = [read_plan(store, name) for name in state.plans]
    planned = {task.shard: task for plan in plans for task in plan.tasks(splits_of([plan]))}
    return [planned[shard] for shard in json.loads((store / state.tasks).read_text(encoding="utf-8"))]


def _claimed(lock: RankLock, tasks: Sequence[ShardTask]) -> Iterator[ShardTask]:
    """Tasks that no other rank has."""
    while True:
        with lock.turn():
            state = lock.read()
            number = state.claimed
            if number == len(tasks):
                return
            state.claimed += 1
            lock.write(state)
        yield tasks[number]


def _end(build: Build, state: JobState, tasks: Sequence[ShardTask]) -> None:
    """Write what ranks that died had claimed, merge, and sum up what all did."""
    drop_leftovers(build.store)
    build.open()
    if build.generations.replacement is not None:  # all of it is read now
        build.options = replace(build.options, verify_sources=False, retry_failed=False)
    if not build.manifests:
        build.manifests = load_manifests(build.recipe.config, build.options.splits, state.data_root)
    build.report = _sum(state)
    left = [task for task in tasks if not (build.store / f"{task.shard}{INDEX_SUFFIX}").is_file()]
    if left:
        logger.warning(
            "%s: %d shards were claimed by ranks that ended before they were written; this one writes them",
            build.store,
            len(left),
        )
    build.run_tasks(left, total=sum(len(task.rows) for task in left))
    build.conclude()


def _counts(report: BuildReport) -> dict[str, Any]:
    return {"encoded": dict(report.encoded), **{name: getattr(report, name) for name in _SUMMED}}


def _sum(state: JobState) -> BuildReport:
    report = BuildReport(planned=state.planned, encoded=Counter(dict.fromkeys(state.planned, 0)))
    for counts in state.counts.values():
        report.encoded.update(counts["encoded"])
        for name in _SUMMED:
            setattr(report, name, getattr(report, name) + counts[name])
    report.seconds = max(counts["seconds"] for counts in state.counts.values())
    return report


def _planned(work: Mapping[str, Work]) -> dict[str, dict[str, int]]:
    report = BuildReport()
    for split, item in work.items():
        report.count(split, item)
    return report.planned
