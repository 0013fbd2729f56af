"""A build by processes that wait for each other: the ranks of a training run (train.py --build_missing)."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from iianet.errors import StoreError
from shardwriter.build.build import Build
from shardwriter.storage.lock import build_lock
from shardwriter.store.catalog import splits_of
from shardwriter.store.generation import Generations


class Ranks(Protocol):
    """Processes that take the same steps."""

    @property
    def number(self) -> int:
        """Of this one."""

    @property
    def count(self) -> int:
        """How many there are."""

    def all(self, value: bool) -> bool:
        """Whether all gave True; waits for all."""


def build_together(build: Build, ranks: Ranks) -> None:
    """Build a store: rank 0 plans and sums up, and each rank encodes its part of the one plan.

    Every rank calls it, with an encoder on its own device.

    Raises:
        FeatureStoreError: On every rank, where one could not go on.
    """
    first = ranks.number == 0
    with ExitStack() as held:
        _together(ranks, lambda: held.enter_context(build_lock(build.store)) if first else None)
        _together(ranks, lambda: _publish(build) if first else None)
        _together(ranks, lambda: _encode(build, ranks))
        _together(ranks, lambda: build.finish() if first else None)


def _publish(build: Build) -> None:
    build.open()
    build.count(build.publish())


def _encode(build: Build, ranks: Ranks) -> None:
    if ranks.number:
        build.generations = Generations.open(build.store)
    plans = build.generations.active
    tasks = build.wanted_tasks(plans, splits_of(plans), ranks.number, ranks.count)
    build.run_tasks(tasks, total=sum(len(task.rows) for task in tasks), shown=ranks.number == 0)


def _together(ranks: Ranks, step: Callable[[], Any]) -> None:
    """Take a step on every rank. One that fails must not leave the others waiting for it."""
    failure: BaseException | None = None
    try:
        step()
    except BaseException as error:
        failure = error
    if not ranks.all(failure is None):
        raise failure or StoreError("another rank could not build what is missing; its message says why")
