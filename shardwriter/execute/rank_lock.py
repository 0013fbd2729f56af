"""Hold a store together with the other ranks of a job, against all other builds; and share its tasks.

STORE/.lock is held by all ranks of a job, shared, and by any other build alone. STORE/.job is held by one rank at a
time, for moments, when it comes and when it leaves; it says what the job is. STORE/.tasks holds a lock file a shard:
whoever gets it writes the shard. The system drops the locks of a rank that dies, on all machines that share the folder,
so nobody waits for it, and who leaves last is known by the lock alone.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from iianet.errors import StoreError
from iianet.launch import Launch
from iianet.regular_file import open_regular
from shardwriter.format.document import MOST_BYTES, parse_object, take
from shardwriter.format.files import make_own_folder
from shardwriter.format.names import index_name
from shardwriter.format.plan import ShardTask
from shardwriter.storage.folder import Folder
from shardwriter.storage.lock import (
    LOCK_FILE,
    explained,
    holder,
    name_holder,
    open_lock,
    release_lock,
    try_lock,
    wait_for_lock,
)
from shardwriter.storage.storage import checked_name

JOB_FILE = ".job"
TASK_FOLDER = ".tasks"
TURN_SECONDS = 86_400.0
"""Longest wait for another rank: one that ends a job may have to write what dead ones had taken."""


@dataclass(kw_only=True)
class JobState:
    """What the ranks of a job share.

    Attributes:
        job: Which it is.
        asked: Digest of what its ranks were asked for: two jobs may have one name.
        shared: What a rank needs to take part, see `Operation.to_share`.
        plans: Names of the plans whose tasks are run.
        tasks: Names of the shards to be written.
        counts: What each rank that has left did, by its number.
        done: Whether the last one has ended the job.
    """

    job: str
    asked: str
    shared: dict[str, Any]
    plans: list[str]
    tasks: list[str]
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: bool = False


class RankLock:
    """The two locks of a rank; `turn` must be held for all else."""

    def __init__(self, folder: Path, rank: Launch, asked: str, lock: IO[str], job: IO[str]) -> None:
        self._folder = folder
        self._rank = rank
        self._asked = asked
        self._lock = lock
        self._job = job
        self._leaves_lock = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep the other ranks waiting."""
        wait_for_lock(
            self._job, self._folder, TURN_SECONDS, lambda: f"a rank that plans or ends ({holder(self._lock)})"
        )
        try:
            yield
        finally:
            if self._leaves_lock:
                release_lock(self._lock)  # first: the next one must not take us for one that is there
            release_lock(self._job)

    def is_alone(self) -> bool:
        """Whether no other rank is there, and no other build: then none can come before the turn ends."""
        self._leaves_lock = try_lock(self._lock, self._folder, shared=False)
        return self._leaves_lock

    def leave(self) -> None:
        """Release the store when the turn ends. A failed attempt to lock it alone has released it on a local file
        system; on NFS our shared lock is still there."""
        self._leaves_lock = True

    def is_late(self) -> bool:
        """Whether our job has ended without us; only for one that is alone.

        The number of a rank that took part is in the record: one that comes again is of a new job of the same name.
        """
        try:
            state = self.read()
        except StoreError:
            return False
        return state.done and self._is_ours(state) and str(self._rank.number) not in state.counts

    def begin(self, state: JobState) -> None:
        """Let the other ranks in; only for one that is alone."""
        name_holder(self._lock, f"rank {self._rank.number} of {self._rank.job}: ")
        self.write(state)
        self._leaves_lock = False
        if not try_lock(self._lock, self._folder, shared=True):
            self._refuse()

    def join(self) -> JobState:
        """Hold the store with ranks that are there. Raises StoreError where another build is, or another job."""
        if not try_lock(self._lock, self._folder, shared=True):
            self._refuse()
        state = self.read()
        if not self._is_ours(state):
            self._refuse()
        return state

    def _is_ours(self, state: JobState) -> bool:
        return (state.job, state.asked) == (self._rank.job, self._asked)

    def read(self) -> JobState:
        """What the job is. Raises StoreError where a rank that was killed left it half written."""
        text = os.pread(self._job.fileno(), MOST_BYTES + 1, 0).partition(b"\n")[0]
        try:
            facts = parse_object(text)
            return JobState(
                job=take(facts, "job", str),
                asked=take(facts, "asked", str),
                shared=take(facts, "shared", dict),
                plans=take(facts, "plans", list),
                tasks=take(facts, "tasks", list),
                counts=take(facts, "counts", dict),
                done=facts.get("done") is True,
            )
        except ValueError as error:
            raise StoreError(
                f"{self._folder / JOB_FILE}: does not say what the job is ({error}). Every published shard is whole: "
                "stop all ranks of the job and start it again to resume"
            ) from error

    def write(self, state: JobState) -> None:
        """Say what the job is, in one line over the last one."""
        os.pwrite(self._job.fileno(), json.dumps(asdict(state)).encode() + b"\n", 0)

    def _refuse(self) -> None:
        self.leave()
        raise StoreError(
            f"{self._folder}: another build is writing to it ({holder(self._lock)}); this is {self._rank.job}, or one "
            "of its name that was asked for something else. Wait for it or stop it"
        )


@contextmanager
def rank_lock(folder: Path, rank: Launch, asked: str) -> Iterator[RankLock]:
    """The locks of a rank, not held yet; the system drops them with the process, however it ends."""
    with open_lock(folder, LOCK_FILE) as lock, open_lock(folder, JOB_FILE) as job, explained(folder):
        yield RankLock(folder, rank, asked, lock, job)


class SharedTasks:
    """Tasks that processes which share a folder take one by one: a lock a shard, held until the shard is there, or
    `close` is called.

    Args:
        folder: Of the store.
        tasks: The same for all of them.
        part: Number of this process and how many there are: where it begins to look.
    """

    def __init__(self, folder: Folder, tasks: Sequence[ShardTask], part: tuple[int, int]) -> None:
        first = len(tasks) * part[0] // max(part[1], 1)
        self._folder = folder
        self._tasks = [*tasks[first:], *tasks[:first]]
        self._held: dict[str, IO[bytes]] = {}

    def __iter__(self) -> Iterator[ShardTask]:
        """Tasks that nobody else has and that are not done; one is taken when it is asked for."""
        with explained(self._folder.path):
            make_own_folder(self._folder.path / TASK_FOLDER)
        for task in self._tasks:
            self._release_done()
            if not self._is_done(task.shard) and self._take(task.shard):
                yield task

    def close(self) -> None:
        """Let others take what is not done. Not before the last task is written: it was taken long before."""
        while self._held:
            self._held.popitem()[1].close()

    def _take(self, shard: str) -> bool:
        path = self._folder.path / TASK_FOLDER / checked_name(shard, self._folder.name)
        stream = os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b")
        if not try_lock(stream.fileno(), path, shared=False) or self._is_done(shard):  # by who had it until now
            stream.close()
            return False
        self._held[shard] = stream
        return True

    def _release_done(self) -> None:
        for shard in [shard for shard in self._held if self._is_done(shard)]:
            self._held.pop(shard).close()

    def _is_done(self, shard: str) -> bool:
        return self._folder.version(index_name(shard)) is not None


def delete_task_locks(folder: Folder) -> None:
    """Delete the lock files of tasks; only where nobody takes any."""
    shutil.rmtree(folder.path / TASK_FOLDER, ignore_errors=True)
