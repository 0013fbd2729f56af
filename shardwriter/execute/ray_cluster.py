"""Run the tasks of a build on a Ray cluster.

Ray places the actors, starts those of a lost node elsewhere, and gives them their tasks again. Here is what an actor
does, and who gets which task next.
"""

import importlib
import logging
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import torch

from iianet.errors import ConfigError, FeatureStoreError, StoreError
from shardwriter.encode.sources import Samples
from shardwriter.encode.write_shards import Event, Progress, write_shards
from shardwriter.execute.executor import Job
from shardwriter.format.files import delete_temporary_files
from shardwriter.format.names import STORE_FILE
from shardwriter.format.plan import ShardTask

logger = logging.getLogger(__name__)

AHEAD = 2
"""Tasks that an actor is given, so that it need not wait for the next one."""
RESTARTS = 10
"""How often an actor is started again whose node or process is gone; one that dies of its task must end. Retries of
tasks are not counted: an attempt to reach a node that is gone, but not known to be, is one."""

PATIENCE_SECONDS = 60.0
"""After so long without news, a build that has no actor at all says so."""
LONGEST_WAIT_SECONDS = 86_400.0
"""After so long, it ends."""


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Runs tasks in actors of a Ray cluster.

    Attributes:
        address: Of the cluster; `auto` is the one on this machine, None that or else one started here.
        device: cuda or cpu; None is cuda where the cluster has GPUs.
        num_actors: How many; None is as many as the cluster has GPUs, or processors.
    """

    address: str | None = None
    device: str | None = None
    num_actors: int | None = None

    def run(self, job: Job, tasks: Iterable[ShardTask], progress: Progress) -> None:
        """See `Executor`."""
        job = replace(job, storage=job.storage.absolute())  # actors do not share our working directory
        left = iter(tasks)
        first = next(left, None)
        if first is None:
            return
        with _connected(self.address) as ray:
            device, room = self._room(ray)
            actors = _Actors(ray, job, device, progress)
            try:
                actors.run(chain([first], left), self.num_actors or room)
            finally:
                actors.dismiss()
                delete_temporary_files(job.storage.staging)

    def _room(self, ray: Any) -> tuple[str, int]:
        """Type of device, and how many actors there is room for."""
        found = ray.cluster_resources()
        device = self.device or ("cuda" if found.get("GPU") else "cpu")
        room = int(found.get("GPU" if device == "cuda" else "CPU", 0))
        if room < 1:
            raise ConfigError(
                f"--device {device}: the Ray cluster has none ({_shown(found)}); add nodes that have, or give "
                f"--device {'cpu' if device == 'cuda' else 'cuda'}"
            )
        return device, room


@dataclass(kw_only=True)
class Outcome:
    """What became of a task.

    Attributes:
        events: In the order in which they happened.
        error: Why it could not be run.
    """

    events: list[Event] = field(default_factory=list)
    error: FeatureStoreError | None = None

    def report(self, progress: Progress) -> None:
        """Repeat the events. Raises the error, if there is one."""
        for event in self.events:
            progress(event)
        if self.error is not None:
            raise self.error


class RayActor:
    """Writes shards with an encoder of its own.

    Args:
        job: What it needs.
        device: Type: cuda, of which Ray lets it see one, or cpu.
    """

    def __init__(self, job: Job, device: str) -> None:
        self._job = job
        self._device = torch.device(device)
        self._samples: Samples | None = None
        if device == "cpu":
            torch.set_num_threads(1)  # as many actors as processors

    def ready(self) -> None:
        """Answers when the actor has found a place."""

    def run(self, task: ShardTask) -> Outcome:
        """Write one shard."""
        outcome = Outcome()
        storage = self._job.storage
        try:
            if storage.version(STORE_FILE) is None:
                raise StoreError(
                    f"{storage.where(STORE_FILE)}: is not there on {socket.gethostname()}; a build on a cluster needs "
                    "a --shards folder that all nodes share, under the same path"
                )
            self._samples = self._samples or self._job.source.open(self._device)
            write_shards(storage, [task], self._samples, outcome.events.append)
        except FeatureStoreError as error:
            outcome.error = error
        return outcome


class _Actors:
    """The actors of a run, and what they are doing."""

    def __init__(self, ray: Any, job: Job, device: str, progress: Progress) -> None:
        self.ray = ray
        self.job = job
        self.device = device
        self.progress = progress
        self.actors: dict[int, Any] = {}
        self.busy: dict[Any, tuple[int, str | None]] = {}

    def run(self, left: Iterator[ShardTask], count: int) -> None:
        """Run tasks in at most `count` actors."""
        are_left, rounds = True, 0
        for number in range(count):
            self._hire(number)
        while self.busy and (are_left or not self._only_wait()):
            ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=PATIENCE_SECONDS)
            if not ready:
                if self._only_wait():
                    rounds += 1
                    if rounds * PATIENCE_SECONDS > LONGEST_WAIT_SECONDS:
                        raise StoreError(
                            f"{self.job.storage.name}: the Ray cluster had no place for an actor in "
                            f"{LONGEST_WAIT_SECONDS / 3600:.0f} hours (ray status shows what it is used for); wait, or "
                            "give --executor local, and run the command again to resume"
                        )
                    logger.warning("the Ray cluster has found no place for an actor yet; others may be using it")
                continue
            rounds = 0
            (done,) = ready
            number, shard = self.busy.pop(done)
            self._hear(done, shard)
            held = sum(holder == number for holder, _ in self.busy.values())
            for task in islice(left, AHEAD - held):
                self._give(number, task)
                held += 1
            are_left = are_left and held == AHEAD
            if not held:  # its place may be what another one, whose node is lost, waits for
                self.ray.kill(self.actors.pop(number))

    def _only_wait(self) -> bool:
        """Whether nothing runs, and actors wait for a place: others' jobs may hold it for ever."""
        return all(shard is None for _, shard in self.busy.values())

    def dismiss(self) -> None:
        """End all actors."""
        for actor in self.actors.values():
            self.ray.kill(actor)

    def _hire(self, number: int) -> None:
        resources = {"num_gpus": 1, "num_cpus": 1} if self.device == "cuda" else {"num_cpus": 1}
        kind = self.ray.remote(RayActor).options(max_restarts=RESTARTS, max_task_retries=-1, **resources)
        self.actors[number] = kind.remote(self.job, self.device)
        self.busy[self.actors[number].ready.remote()] = (number, None)

    def _give(self, number: int, task: ShardTask) -> None:
        self.busy[self.actors[number].run.remote(task.alone())] = (number, task.shard)

    def _hear(self, done: Any, shard: str | None) -> None:
        try:
            outcome = self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            what = f"{shard} could not be written" if shard else "an actor could not be started"
            raise StoreError(
                f"{self.job.storage.name}: {what} on the Ray cluster ({str(error).strip()}). Every published shard is "
                "whole; fix it (out of memory: a smaller --batch_size) and run the command again to resume."
            ) from error
        if outcome is not None:
            outcome.report(self.progress)


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster. Raises ConfigError where either is missing."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            "--executor ray: Ray is not installed; pip install -e '.[ray]' in the project's folder"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=True)
    except ConnectionError as error:
        raise ConfigError(
            f"--ray_address {address}: no Ray cluster answers ({error}); start one with ray start --head, or leave "
            "--ray_address out to use this machine"
        ) from error
    if on_sigterm is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own exit in its place
    try:
        yield ray
    finally:
        ray.shutdown()


def _shown(resources: Any) -> str:
    return ", ".join(f"{name} {resources[name]:g}" for name in ("CPU", "GPU") if name in resources) or "it is empty"
