"""Batches of stored embeddings that a thread reads ahead, into fresh or into reused memory."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from loaders.order import Indices
from loaders.sharded_embeddings import EmbeddingBatch, ShardedEmbeddings

GROUPS_AHEAD = 2
"""Groups of batches that are read ahead of the one in use: handing over single batches would cost as much as reading
them does."""


class PrefetchedEmbeddings:
    """Reads the batches of a `ShardedEmbeddings` in a thread, at least `prefetch` ahead of their use.

    Who owns a batch: by default the caller, for ever; `list(...)` is safe. With `reuse` it is lent: its embedding lies
    in a buffer that is filled again and again, and it holds until the next batch is asked for. Copy what is to be kept
    longer, and wait for a copy to a GPU before asking for the next. Keys and frames are the caller's in both cases.

    Args:
        dataset: Whose batches. Each iteration is its present epoch; there are no worker processes.
        prefetch: Batches that are read ahead, at least; up to three times as many are in memory.
        reuse: Lend batches instead of giving them away.
        pin_memory: Page-locked memory, from where copies to a GPU run beside its work; by default where there is one.
    """

    def __init__(
        self,
        dataset: ShardedEmbeddings,
        *,
        prefetch: int = 4,
        reuse: bool = False,
        pin_memory: bool | None = None,
    ) -> None:
        self.dataset = dataset
        self.group = max(1, prefetch)
        self.reuse = reuse
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._ring: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        if self.reuse and not self._ring:  # kept from epoch to epoch: page-locking takes long
            longest = int(self.dataset.reader.frames.max())
            count = self.group * (GROUPS_AHEAD + 1)
            self._ring = [self._memory(self.dataset.order.batch_size, longest) for _ in range(count)]
        waiting: deque[Future[list[EmbeddingBatch]]] = deque()
        numbered = enumerate(self.dataset.rows())
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch-embeddings") as pool:
            while group := list(islice(numbered, self.group)):
                waiting.append(pool.submit(self._read, group))
                if len(waiting) > GROUPS_AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _read(self, group: Sequence[tuple[int, Indices]]) -> list[EmbeddingBatch]:
        return [self.dataset.batch(rows, self._memory_for(number, rows)) for number, rows in group]

    def _memory_for(self, number: int, rows: Indices) -> Tensor:
        if self.reuse:
            return self._ring[number % len(self._ring)]
        return self._memory(len(rows), int(self.dataset.reader.frames[rows].max()))

    def _memory(self, rows: int, frames: int) -> Tensor:
        size = math.prod((rows, self.dataset.reader.identity.dim, frames))
        dtype = torch.from_numpy(np.empty(0, dtype=self.dataset.reader.dtype)).dtype
        return torch.empty(size, dtype=dtype, pin_memory=self.pin_memory)
