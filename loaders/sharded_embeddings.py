"""Batches of stored embeddings for other models: no corpus, no audio, no config."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from configs.errors import StoreError
from loaders.order import Order
from loaders.store import StoreReader, open_reader
from shardwriter.format import hash_position


@dataclass(kw_only=True)
class EmbeddingBatch:
    """Embeddings of some utterances.

    Attributes:
        keys: Of the utterances.
        embedding: `(batch, dim, frames)`, in the store's dtype; zeros after the end of shorter ones.
        frames: Length of each, `(batch,)`, int64.
    """

    keys: list[str]
    embedding: Tensor
    frames: Tensor

    def pin_memory(self) -> "EmbeddingBatch":
        """The same batch in page-locked memory."""
        return EmbeddingBatch(keys=self.keys, embedding=self.embedding.pin_memory(), frames=self.frames.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "EmbeddingBatch":
        """The same batch on a device."""
        return EmbeddingBatch(
            keys=self.keys,
            embedding=self.embedding.to(device, non_blocking=non_blocking),
            frames=self.frames.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return len(self.keys)


class ShardedEmbeddings(IterableDataset[EmbeddingBatch]):
    """Every stored utterance of a split once an epoch, batch by batch.

    Give it to `DataLoader(dataset, batch_size=None, num_workers=any)`: the batches do not depend on the workers.
    Between epochs call `set_epoch`, which persistent workers see too.

    Args:
        store: Folder of the store.
        split: train, val or test.
        batch_size: Utterances per batch and rank; the last batch may be smaller, or none on some ranks.
        shuffle: Permute each epoch; else hash order.
        seed: Of the permutations.
        epoch: To start with.
        rank: Of this process; by default torch.distributed's, else RANK of the environment, else 0.
        world_size: Ranks that share each epoch; by default likewise, with WORLD_SIZE, else 1.
        drop_last: Leave the last incomplete batch out, so that all ranks have equally many.
        block_size: Utterances that lie, and are read, together.
        window_blocks: Blocks that are mixed.

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
        window_blocks: int = 4,
    ) -> None:
        self.reader: StoreReader = open_reader(store, split)
        if not len(self.reader):
            raise StoreError(f"{store}: split {split!r} holds no utterances yet; run build-shards")
        self.rank = _ambient_rank() if rank is None else rank
        self._arranged = sorted(self.reader.keys, key=lambda key: (hash_position(key), key))
        count = np.arange(len(self._arranged), dtype=np.int64)
        self.order = Order(
            utterance_of_example=count,
            eligible=count,
            seed=seed,
            batch_size=batch_size,
            world_size=_ambient_world_size() if world_size is None else world_size,
            shuffle=shuffle,
            dynamic_mixing=False,
            drop_last=drop_last,
            block_size=block_size,
            window_blocks=window_blocks,
        )
        self._epoch = torch.tensor([epoch]).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, in every worker."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        batches = self.order.num_batches
        return batches - (batches > 0 and not len(self.order.positions(batches - 1, self.rank)))

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        example = self.order.epoch(int(self._epoch)).example
        for batch in range(first, len(self), stride):
            positions = self.order.positions(batch, self.rank)
            yield self._batch([self._arranged[index] for index in example[positions]])

    def _batch(self, keys: list[str]) -> EmbeddingBatch:
        frames = np.array([self.reader.frames_of(key) for key in keys], dtype=np.int64)
        embedding = np.zeros((len(keys), self.reader.identity.dim, frames.max()), dtype=self.reader.dtype)
        for key, length, out in zip(keys, frames, embedding, strict=True):
            if length == out.shape[1]:
                self.reader.read_into(key, out)
            else:
                out[:, :length] = self.reader.read(key)
        return EmbeddingBatch(keys=keys, embedding=torch.from_numpy(embedding), frames=torch.from_numpy(frames))


def _ambient_rank() -> int:
    return dist.get_rank() if _distributed() else int(os.environ.get("RANK", 0))


def _ambient_world_size() -> int:
    return dist.get_world_size() if _distributed() else int(os.environ.get("WORLD_SIZE", 1))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
