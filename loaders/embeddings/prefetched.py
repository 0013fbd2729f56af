"""Batches of ShardedEmbeddings, read in a thread ahead of their use."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from loaders.embeddings.sharded_embeddings import EmbeddingBatch, ShardedEmbeddings
from loaders.epochs import Position
from loaders.order import Indices

STOP = -1
GROUPS = 2
"""Groups of batches in memory: one in use, one that is being read. Every further one is colder in the caches."""


class PrefetchedEmbeddings:
    """Reads the batches of a `ShardedEmbeddings` in a thread, ahead of their use.

    Worth it where the loop waits for a GPU or another machine: the thread reads meanwhile. A loop that does nothing
    else is faster over the dataset itself (see benchmarks/): both need the interpreter.

    By default the caller owns every batch; `list(...)` is safe. With `reuse` a batch is lent: its embedding lies in a
    buffer that is filled again, and is valid until the next batch is asked for. Copy what is to be kept longer, and
    wait for a copy to a GPU before asking for the next. Keys and frames are the caller's in both cases. Lent batches
    allow one iteration at a time.

    Args:
        dataset: Makes the batches. Each iteration is its next epoch, and its `state_dict` counts the batches that were
            given out here; there are no worker processes.
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
        position = self.dataset.begin()
        return self.dataset.epochs.count(self._batches(position), position)

    def _batches(self, position: Position) -> Iterator[EmbeddingBatch]:
        if self.reuse and not self._buffers:  # kept from epoch to epoch: page-locking takes long
            self._buffers = [[self._memory() for _ in range(self.prefetch)] for _ in range(GROUPS)]
        free: SimpleQueue[int] = SimpleQueue()
        filled: SimpleQueue[list[EmbeddingBatch]] = SimpleQueue()
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch-embeddings") as pool:
            reading = pool.submit(self._read, self.dataset.rows(position), free, filled)
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

    def _read(self, rows: Iterator[Indices], free: SimpleQueue[int], filled: SimpleQueue[list[EmbeddingBatch]]) -> None:
        """Fill groups of buffers as they become free, until there are no more batches."""
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
