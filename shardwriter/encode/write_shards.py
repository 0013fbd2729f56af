"""Write the shards of tasks: samples in, published shards out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import NamedTuple

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


class Stored(NamedTuple):
    """An utterance is written to its shard."""

    split: str
    key: str


class NotStored(NamedTuple):
    """An utterance cannot be stored: its npz relative to data_root, and why."""

    split: str
    key: str
    mouth: str
    reason: str


class Published(NamedTuple):
    """A shard is complete; `audio_bytes` of its bytes are audio."""

    shard: str
    stored_bytes: int
    audio_bytes: int


Event = Stored | NotStored | Published
Progress = Callable[[Event], object]
"""Counts what happens. Events are small, and the same in the process that counts as in the one that writes."""


def write_shards(storage: Storage, tasks: Iterable[ShardTask], samples: Samples, progress: Progress) -> None:
    """Write and publish the shards of `tasks`.

    Raises:
        StoreError: The store cannot be written. Every published shard is whole.
    """
    opening = closing(samples.read(iter(tasks)))
    # An error of the system is one of writing: what cannot be read is a failure of its utterance.
    with explained(storage.staging), publishing(storage, progress) as publish, opening as opened:
        for task, planned in opened:
            with ShardWriter(storage.staging) as writer:
                for key, mouth, sample in planned:
                    writer.add(key, sample)
                    if isinstance(sample, Failed):
                        progress(NotStored(task.split, key, mouth, sample.reason))
                    else:
                        progress(Stored(task.split, key))
                written = writer.finish()
            publish(task.shard, written)


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


@contextmanager
def publishing(storage: Storage, progress: Progress) -> Iterator[Callable[[str, WrittenShard], None]]:
    """Publish shards, beside the writing of others where that takes time. Leaving the block waits for all.

    Yields:
        A function that publishes a shard, or begins to, and raises what publishing one of those before raised.
    """
    pool = ThreadPoolExecutor(storage.num_uploads, "publish-shard") if storage.num_uploads else None
    running: deque[tuple[str, WrittenShard, Future[None]]] = deque()

    def finish_first() -> None:
        shard, written, done = running.popleft()
        done.result()
        progress(Published(shard, written.tar_size, written.audio_bytes))

    def publish(shard: str, written: WrittenShard) -> None:
        if pool is None:
            publish_shard(storage, shard, written)
            progress(Published(shard, written.tar_size, written.audio_bytes))
            return
        running.append((shard, written, pool.submit(publish_shard, storage, shard, written)))
        while len(running) > WAITING or (running and running[0][2].done()):
            finish_first()

    try:
        yield publish
        while running:
            finish_first()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)  # what is staged and not published is left to the next build
