"""Hold a store together with the other ranks of a job, against all other builds.

STORE/.lock is held by all ranks of a job, shared, and by any other build alone. STORE/.job is held by one rank at a
time, for moments, and says how far the job has come: the system hands it from one rank to the next, on all machines
that share the folder. So nobody waits for a rank that died, and who leaves last is told by the lock alone.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from iianet.errors import StoreError
from shardwriter.execute.rank import Rank
from shardwriter.format.names import JOB_FILE, LOCK_FILE
from shardwriter.storage.lock import (
    explained,
    holder,
    name_holder,
    open_lock,
    release_lock,
    try_lock,
    wait_for_lock,
)

_LONGEST_STATE = 1 << 20


@dataclass(kw_only=True)
class JobState:
    """What the ranks of a job share.

    Attributes:
        job: Which it is.
        asked: Digest of what its ranks were asked for: two jobs may have one name.
        identity: What its embeddings are made with.
        data_root: Folder that paths are relative to.
        plans: Names of those that are run.
        tasks: Name of the file that lists the shards to be written.
        claimed: How many of these are claimed.
        planned: `BuildReport.planned`, of the rank that planned.
        counts: What each rank that has left did, by its number.
        done: Whether the last one has summed up.
    """

    job: str
    asked: str
    identity: dict[str, Any]
    data_root: str
    plans: list[str]
    tasks: str
    claimed: int = 0
    planned: dict[str, dict[str, int]] = field(default_factory=dict)
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: bool = False


class RankLock:
    """The two locks of a rank; `turn` must be held for all else."""

    def __init__(self, store: Path, rank: Rank, asked: str, lock: IO[str], job: IO[str]) -> None:
        self._store = store
        self._rank = rank
        self._asked = asked
        self._lock = lock
        self._job = job
        self._leaves_lock = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep the other ranks waiting."""
        wait_for_lock(self._store, self._job)
        try:
            yield
        finally:
            if self._leaves_lock:
                release_lock(self._lock)  # first: the next one must not take us for one that is there
            release_lock(self._job)

    def is_alone(self) -> bool:
        """Whether no other rank is there, and no other build: then none can come before the turn ends."""
        self._leaves_lock = try_lock(self._store, self._lock, shared=False)
        return self._leaves_lock

    def leave(self) -> None:
        """Hold the store no longer, when the turn ends. Where flock is that of NFS, asking to be alone in vain keeps
        what was held; locally it is lost by that."""
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
        if not try_lock(self._store, self._lock, shared=True):
            self._refuse()

    def join(self) -> JobState:
        """Hold the store with ranks that are there. Raises StoreError where another build is, or another job."""
        if not try_lock(self._store, self._lock, shared=True):
            self._refuse()
        state = self.read()
        if not self._is_ours(state):
            self._refuse()
        return state

    def _is_ours(self, state: JobState) -> bool:
        return (state.job, state.asked) == (self._rank.job, self._asked)

    def read(self) -> JobState:
        """How far the job has come. Raises StoreError where a rank that was killed left it half written."""
        text = os.pread(self._job.fileno(), _LONGEST_STATE, 0).partition(b"\n")[0]
        try:
            return JobState(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"{self._store / JOB_FILE}: does not say how far the job has come ({error}). Every published shard is "
                "whole: stop all ranks of the job and start it again to go on"
            ) from error

    def write(self, state: JobState) -> None:
        """Say how far it has come, in one line over the last one."""
        os.pwrite(self._job.fileno(), json.dumps(asdict(state)).encode() + b"\n", 0)

    def _refuse(self) -> None:
        self.leave()
        raise StoreError(
            f"{self._store}: another build is writing to it ({holder(self._lock)}); this is {self._rank.job}, or "
            "one of its name that was asked for something else. Wait for it or stop it"
        )


@contextmanager
def rank_lock(store: Path, rank: Rank, asked: str) -> Iterator[RankLock]:
    """The locks of a rank, not held yet; the system drops them with the process, however it ends."""
    with open_lock(store, LOCK_FILE) as lock, open_lock(store, JOB_FILE) as job, explained(store):
        yield RankLock(store, rank, asked, lock, job)
