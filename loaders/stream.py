"""Batches of embeddings out of any tars, front to back: by path, brace pattern or URL, without an index.

What a store promises cannot be had here: the order depends on the number of ranks and workers, and a shard belongs to
one of them, whole.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import webdataset
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.utils import pytorch_worker_info

from iianet.errors import StoreError
from loaders.sharded_embeddings import EmbeddingBatch
from loaders.stream_sample import read_embedding
from shardwriter.inspect.tar_samples import is_decoded, read_samples
from shardwriter.storage.tar_urls import expand

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Part(NamedTuple):
    """Which part of the shards is read here: that of a worker of a rank."""

    rank: int
    world_size: int
    worker: int
    num_workers: int

    def of(self, shards: Sequence[str]) -> list[str]:
        """Every so many-th of a rank's shards, which are every so many-th of all."""
        return list(shards[self.rank :: self.world_size][self.worker :: self.num_workers])


class StreamedEmbeddings(IterableDataset[EmbeddingBatch]):
    """Every sample of some tars once an epoch, batch by batch, as they come.

    Give it to `DataLoader(dataset, batch_size=None, num_workers=any)`. Each worker reads shards of its own, so more
    workers than shards stand idle. Between epochs call `set_epoch`, which persistent workers see too.

    Args:
        urls: Paths, URLs of http or https, or brace patterns of them, one or several.
        batch_size: Samples per batch; the last one of each worker may be smaller.
        shuffle_buffer: Samples among which the next one is drawn, in shards that are permuted each epoch; 0 reads all
            in order.
        seed: Of the permutations.
        epoch: To start with.
        rank: Of this process; by default as WebDataset finds it: RANK of the environment, else torch.distributed's.
        world_size: Ranks that share the shards; by default likewise.

    Raises:
        StoreError: A shard is missing or no file or URL of http, or there are fewer shards than ranks.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        batch_size: int = 32,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        epoch: int = 0,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        ambient_rank, ambient_world_size, *_ = pytorch_worker_info()
        self.urls = expand_all(urls)
        self.batch_size = batch_size
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.rank = ambient_rank if rank is None else rank
        self.world_size = ambient_world_size if world_size is None else world_size
        refuse_fewer_shards(self.urls, self.world_size)
        self._epoch = torch.tensor([epoch]).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, in every worker."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        part = part_here(self.rank, self.world_size)
        warn_of_idle_workers(self.urls, part)
        place = (self.seed, int(self._epoch))
        urls = part.of(permuted(self.urls, place) if self.shuffle_buffer else self.urls)
        samples = read_samples(urls, select=is_decoded)
        for batch in webdataset.batched(self.batch_size, collation_fn=None)(
            buffered(samples, self.shuffle_buffer, (*place, part.rank, part.worker))
        ):
            yield _collate(batch)


def expand_all(urls: str | Sequence[str]) -> list[str]:
    """The tars of one pattern or of several. Raises StoreError where one cannot be or is named twice, or none is."""
    expanded = [url for given in ([urls] if isinstance(urls, str) else urls) for url in expand(given)]
    if not expanded:
        raise StoreError("there are no shards to stream; expected at least one path or URL")
    for url, count in Counter(expanded).items():
        if count > 1:
            raise StoreError(f"{url}: is named {count} times; its samples would count as often. Name each shard once")
    return expanded


def refuse_fewer_shards(urls: Sequence[str], world_size: int) -> None:
    """Raise StoreError where a rank would have no shard."""
    if len(urls) < world_size:
        raise StoreError(
            f"{urls[0]}: there are {len(urls)} shards and {world_size} ranks, and a shard is read by one rank; write "
            "more shards, train with fewer ranks, or make a store of them with inspect-shards --reindex"
        )


def part_here(rank: int, world_size: int) -> Part:
    """The part of this worker process, or of the whole rank where there are none."""
    worker = get_worker_info()
    return Part(rank, world_size, *((worker.id, worker.num_workers) if worker else (0, 1)))


def warn_of_idle_workers(urls: Sequence[str], part: Part) -> None:
    """Say once what stands idle."""
    shards = len(urls[part.rank :: part.world_size])
    if part.worker == 0 and shards < part.num_workers:
        logger.warning(
            "%d workers share %d shards, so %d stand idle", part.num_workers, shards, part.num_workers - shards
        )


def permuted(urls: Sequence[str], place: Sequence[int]) -> list[str]:
    """The shards in the order of an epoch, the same on all ranks: `place` is seed and epoch."""
    shuffled = list(urls)
    generator(place).shuffle(shuffled)
    return shuffled


def buffered(items: Iterator[Item], size: int, place: Sequence[int]) -> Iterator[Item]:
    """Draw the next item among `size`; in order where that is 0."""
    if size <= 1:
        return items
    shuffled: Iterator[Item] = webdataset.shuffle(size, initial=size, rng=generator(place))(items)
    return shuffled


def generator(place: Sequence[int]) -> random.Random:
    """Random numbers that follow from a place, such as seed and epoch."""
    return random.Random(int(np.random.SeedSequence(list(place)).generate_state(1, np.uint64)[0]))


def _collate(samples: Sequence[dict[str, Any]]) -> EmbeddingBatch:
    embeddings = [read_embedding(sample) for sample in samples]
    first = embeddings[0]
    frames = torch.tensor([embedding.shape[1] for embedding in embeddings])
    batch = np.zeros((len(embeddings), len(first), int(frames.max())), dtype=first.dtype)
    for row, embedding, sample in zip(batch, embeddings, samples, strict=True):
        if embedding.dtype != first.dtype or len(embedding) != len(first):
            raise StoreError(
                f"{sample['__url__']}: {sample['__key__']} is {embedding.shape} {embedding.dtype}; expected "
                f"({len(first)}, frames) {first.dtype} as {samples[0]['__key__']} of {samples[0]['__url__']}. "
                "inspect-shards --reindex --into DIR makes a store of one dtype of them"
            )
        row[:, : embedding.shape[1]] = embedding
    return EmbeddingBatch(
        keys=[sample["__key__"] for sample in samples], embedding=torch.from_numpy(batch), frames=frames
    )
