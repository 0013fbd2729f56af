"""Batches of stored embeddings for other models: no corpus, no audio, no config."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from iianet.errors import StoreError
from loaders.order import Indices, Order
from loaders.read_ahead import ReadAhead, Share
from loaders.reader import StoreReader, open_reader
from loaders.workers import sendable, shared_zeros

STOP = -1
GROUPS = 2
"""Groups of batches in memory: one in use, one that is being read. Every further one is colder in the caches."""


@dataclass(kw_only=True)
class EmbeddingBatch:
    """Embeddings of some utterances.

    Attributes:
        keys: Keys of the utterances.
        embedding: `(batch, dim, frames)`, in the store's dtype; zeros after the end of shorter ones.
        frames: Length of each embedding, `(batch,)`, int64.
    """

    keys: list[str]
    embedding: Tensor
    frames: Tensor

    def pin_memory(self) -> "EmbeddingBatch":
        """The same batch in page-locked memory."""
        return replace(self, embedding=self.embedding.pin_memory(), frames=self.frames.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "EmbeddingBatch":
        """The same batch on a device."""
        embedding, frames = (each.to(device, non_blocking=non_blocking) for each in (self.embedding, self.frames))
        return replace(self, embedding=embedding, frames=frames)

    def __len__(self) -> int:
        return len(self.keys)


class ShardedEmbeddings(IterableDataset[EmbeddingBatch]):
    """Every stored utterance of a split once an epoch, batch by batch.

    Give it to `DataLoader(dataset, batch_size=None, num_workers=any)`: the batches do not depend on the workers.
    Between epochs call `set_epoch`, which persistent workers see too.

    Args:
        store: Folder of the store, or its URL, such as s3://bucket/prefix.
        split: train, val or test.
        batch_size: Utterances per batch and rank; the last batch may be smaller, or none on some ranks.
        shuffle: Whether to permute each epoch; else utterances come in the order of the shards.
        seed: Seed of the permutations.
        epoch: First epoch.
        rank: Rank of this process; by default torch.distributed's, else RANK of the environment, else 0.
        world_size: Ranks that share each epoch; by default likewise, with WORLD_SIZE, else 1.
        drop_last: Whether to leave the last incomplete batch out, so that all ranks have equally many.
        block_size: Utterances that lie, and are read, together.
        window_blocks: Blocks that are mixed.
        read_ahead_windows: Windows whose shards are read before they are needed, each checked against its digest once;
            0 does neither.

    Raises:
        StoreError: There is no such store or split.
    """

    def __init__(
        self,
        store: Path | str,
        split: str = "train",
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        block_size: int = 1000,
        window_blocks: int = 16,
        read_ahead_windows: int = 1,
    ) -> None:
        self.reader: StoreReader = open_reader(store, split)
        if not len(self.reader):
            raise StoreError(f"{store}: split {split!r} has no utterances yet; run build-shards")
        default_rank, default_world_size = _default_rank()
        self.rank = default_rank if rank is None else rank
        # Rows in the order of the shards: hash order, unless write_store was given another; then a block in hash order
        # would be scattered over all shards.
        count = np.arange(len(self.reader), dtype=np.int64)
        self.order = Order(
            utterance_of_example=count,
            eligible=count,
            seed=seed,
            batch_size=batch_size,
            world_size=default_world_size if world_size is None else world_size,
            shuffle=shuffle,
            dynamic_mixing=False,
            drop_last=drop_last,
            block_size=block_size,
            window_blocks=window_blocks,
        )
        self._read_ahead = ReadAhead([self.reader.files], read_ahead_windows)
        self._epoch = shared_zeros(1).fill_(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, in every worker."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        batches = self.order.num_batches
        return batches - (batches > 0 and not len(self.order.positions(batches - 1, self.rank)))

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        return sendable(self.batch(rows) for rows in self.rows())

    def rows(self) -> Iterator[Indices]:
        """Rows of the reader, batch by batch, of this worker; their shards are read ahead meanwhile."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        order = self.order.epoch(int(self._epoch))
        rows = order.example
        share = Share(number=self.rank * stride + first, of=self.order.world_size * stride)
        with self._read_ahead.start_epoch(self.reader.shard_of[rows], order.window, share) as ahead:
            for batch in range(first, len(self), stride):
                positions = self.order.positions(batch, self.rank)
                ahead.advance(int(order.window[positions[-1]]))
                yield rows[positions]
            ahead.finish()

    def batch(self, rows: Indices, memory: Tensor | None = None) -> EmbeddingBatch:
        """Read the embeddings of some rows of the reader, into flat `memory` of its dtype where that is given."""
        frames = self.reader.frames[rows]
        shape = (len(rows), self.reader.identity.dim, int(frames.max()))
        if memory is None:
            embedding = torch.from_numpy(np.empty(shape, dtype=self.reader.dtype))
        else:
            embedding = memory[: math.prod(shape)].view(shape)
        self.reader.read_rows(rows, embedding.numpy())
        keys = self.reader.keys.take(pa.array(rows)).to_pylist()
        return EmbeddingBatch(keys=keys, embedding=embedding, frames=torch.from_numpy(frames))


def _default_rank() -> tuple[int, int]:
    """Rank and world size as torch.distributed says, else the environment, else 0 of 1."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class PrefetchedEmbeddings:
    """Reads the batches of a `ShardedEmbeddings` in a thread, ahead of their use.

    Worth it where the loop waits for a GPU or another machine: the thread reads meanwhile. A loop that does nothing
    else is faster over the dataset itself (see benchmarks/): both need the interpreter.

    By default the caller owns every batch; `list(...)` is safe. With `reuse` a batch is lent: its embedding lies in a
    buffer that is filled again, and is valid until the next batch is asked for. Copy what is to be kept longer, and
    wait for a copy to a GPU before asking for the next. Keys and frames are the caller's in both cases. Lent batches
    allow one iteration at a time.

    Args:
        dataset: Makes the batches. Each iteration is its present epoch; there are no worker processes.
        prefetch: Batches that are read while as many are in use.
        reuse: Whether to lend batches.
        pin_memory: Whether to use page-locked memory, from where copies to a GPU run beside its work; by default where
            there is a GPU.
    """

    def __init__(
        self,
        dataset: ShardedEmbeddings,
        *,
        prefetch: int = 2,
        reuse: bool = False,
        pin_memory: bool | None = None,
    ) -> None:
        self.dataset = dataset
        self.prefetch = max(1, prefetch)
        self.reuse = reuse
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._buffers: list[list[Tensor]] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        if self.reuse and not self._buffers:  # kept from epoch to epoch: page-locking takes long
            self._buffers = [[self._memory() for _ in range(self.prefetch)] for _ in range(GROUPS)]
        free: SimpleQueue[int] = SimpleQueue()
        filled: SimpleQueue[list[EmbeddingBatch]] = SimpleQueue()
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch-embeddings") as pool:
            reading = pool.submit(self._read, free, filled)
            reading.add_done_callback(lambda _: filled.put([]))  # the end, or an error
            try:
                for number in range(GROUPS):
                    free.put(number)
                for group, number in zip(iter(filled.get, []), cycle(range(GROUPS)), strict=False):
                    yield from group
                    free.put(number)
            finally:
                free.put(STOP)  # also where the caller leaves early
            reading.result()

    def _read(self, free: SimpleQueue[int], filled: SimpleQueue[list[EmbeddingBatch]]) -> None:
        """Fill groups of buffers as they become free, until there are no more batches."""
        rows = self.dataset.rows()
        while (number := free.get()) != STOP:
            pairs = zip(self._group(number), rows, strict=False)  # buffers first, so that no rows are lost
            group = [self.dataset.batch(chosen, memory) for memory, chosen in pairs]
            if not group:
                return
            filled.put(group)

    def _group(self, number: int) -> Sequence[Tensor | None]:
        """Memory for a group of batches; None is fresh memory."""
        if self.reuse:
            return self._buffers[number]
        return [self._memory() if self.pin_memory else None for _ in range(self.prefetch)]

    def _memory(self) -> Tensor:
        """Room for any batch."""
        longest = int(self.dataset.reader.frames.max())
        size = math.prod((self.dataset.order.batch_size, self.dataset.reader.identity.dim, longest))
        dtype = torch.from_numpy(np.empty(0, dtype=self.dataset.reader.dtype)).dtype
        return torch.empty(size, dtype=dtype, pin_memory=self.pin_memory)
