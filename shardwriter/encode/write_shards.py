"""Write the shards of tasks: samples in, published shards out."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Protocol

from shardwriter.encode.sources import Samples
from shardwriter.format.files import temporary_path, write_synced
from shardwriter.format.index import encode_index
from shardwriter.format.names import index_name, tar_name
from shardwriter.format.plan import ShardTask
from shardwriter.format.sample import Failed
from shardwriter.format.shard_writer import ShardWriter, WrittenShard
from shardwriter.storage.lock import explained
from shardwriter.storage.storage import Storage

WAITING = 4
"""Shards that may wait to be published: where the network is slower than the encoder, the build waits."""


class Progress(Protocol):
    """Counts what happens."""

    def stored(self, split: str, key: str) -> None:
        """One more utterance is written to its shard."""

    def failed(self, split: str, key: str, mouth: str, reason: str) -> None:
        """One more utterance cannot be stored."""

    def published(self, shard: str, stored_bytes: int, audio_bytes: int) -> None:
        """One more shard is complete; `audio_bytes` of its bytes are audio."""


def write_shards(storage: Storage, tasks: Iterable[ShardTask], samples: Samples, progress: Progress) -> None:
    """Write and publish the shards of `tasks`.

    Raises:
        StoreError: The store cannot be written. Every published shard is whole.
    """
    opening = closing(samples.read(iter(tasks)))
    # An error of the system is one of writing: what cannot be read is a failure of its utterance.
    with explained(storage.staging), Publisher(storage, progress) as publisher, opening as opened:
        for task, planned in opened:
            with ShardWriter(storage.staging) as writer:
                for key, mouth, sample in planned:
                    writer.add(key, sample)
                    if isinstance(sample, Failed):
                        progress.failed(task.split, key, mouth, sample.reason)
                    else:
                        progress.stored(task.split, key)
                written = writer.finish()
            publisher.publish(task.shard, written)


def publish_shard(storage: Storage, shard: str, written: WrittenShard) -> None:
    """Publish a shard under its name: the tar, then the index, which makes it complete."""
    index = temporary_path(storage.staging / index_name(shard))
    files = [(index, index_name(shard))]
    if written.tar is not None:
        files.insert(0, (written.tar, tar_name(shard)))
    try:
        write_synced(index, encode_index(written.index, [written.record(shard)]))
        if written.tar is None:
            storage.delete([tar_name(shard)])  # of an earlier time, when something could be stored
        storage.publish(files)
    finally:
        for path, _ in files:
            path.unlink(missing_ok=True)


class Publisher:
    """Publishes shards, beside the writing of others where that takes time. Leaving the block waits for all."""

    def __init__(self, storage: Storage, progress: Progress) -> None:
        self._storage = storage
        self._progress = progress
        self._pool = ThreadPoolExecutor(storage.num_uploads, "publish-shard") if storage.num_uploads else None
        self._running: deque[tuple[str, WrittenShard, Future[None]]] = deque()

    def __enter__(self) -> "Publisher":
        return self

    def publish(self, shard: str, written: WrittenShard) -> None:
        """Publish a shard, or begin to. Raises what publishing one of those before raised."""
        if self._pool is None:
            publish_shard(self._storage, shard, written)
            self._count(shard, written)
            return
        self._running.append((shard, written, self._pool.submit(publish_shard, self._storage, shard, written)))
        while len(self._running) > WAITING or (self._running and self._running[0][2].done()):
            self._finish_first()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        try:
            while self._running and kind is None:
                self._finish_first()
        finally:
            self._pool.shutdown(cancel_futures=True)  # what is staged and not published is left to the next build

    def _finish_first(self) -> None:
        shard, written, running = self._running.popleft()
        running.result()
        self._count(shard, written)

    def _count(self, shard: str, written: WrittenShard) -> None:
        self._progress.published(shard, written.tar_size, written.audio_bytes)
