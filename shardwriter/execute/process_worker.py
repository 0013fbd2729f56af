"""One process of a build: claims tasks from its parent, runs them, and reports each utterance and shard."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from iianet.errors import FeatureStoreError
from shardwriter.encode.write_shards import write_shards
from shardwriter.execute.executor import Job, Relay
from shardwriter.format.plan import ShardTask

CLAIM, WAIT, STOPPED = "claim", "wait", "stopped"
"""What a worker sends beside the events of its tasks: it would take one more task; it has none and waits for one; it
cannot continue, for this reason."""


def work(job: Job, device: torch.device, num_threads: int, parent: "Connection[Any, Any]") -> None:
    """Run tasks until the parent has no more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        samples = job.source.open(device)
        while (first := _ask(parent, WAIT)) is not None:
            tasks = chain([first], _claimed(parent))
            write_shards(job.storage, tasks, samples, Relay(parent.send))
    except FeatureStoreError as error:
        with suppress(OSError):  # the parent was killed, and we are about to end
            parent.send((STOPPED, error))


def _end_with_parent() -> None:
    """A worker whose parent was killed would write to a store that it does not hold."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _ask(parent: "Connection[Any, Any]", how: str) -> ShardTask | None:
    parent.send((how,))
    task: ShardTask | None = parent.recv()
    return task


def _claimed(parent: "Connection[Any, Any]") -> Iterator[ShardTask]:
    """Tasks while there are any, each claimed when reading comes to it."""
    while (task := _ask(parent, CLAIM)) is not None:
        yield task
