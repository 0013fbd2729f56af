"""Batches of stored embeddings for other models: no corpus, no audio, no config."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from iianet.errors import ConfigError, StoreError
from iianet.wording import show
from loaders.embeddings.place import place_of, refuse_other_group, whole_number
from loaders.epochs import EpochDataset, Epochs, Position
from loaders.order import Indices, Order
from loaders.read_ahead import ReadAhead, worker_share
from loaders.reader import ShardFiles, StoreReader
from loaders.workers import sendable
from shardwriter.format.digest import digest_table
from shardwriter.format.names import unescape_key
from shardwriter.format.sample import parse_metadata
from shardwriter.store.stored_split import cut_names, open_snapshot


@dataclass(kw_only=True)
class EmbeddingBatch:
    """Embeddings of some utterances.

    Attributes:
        keys: Keys of the utterances, as `write_store` was given them.
        embedding: `(batch, dim, frames)`, in the store's dtype; zeros after the end of shorter ones.
        frames: Length of each embedding, `(batch,)`, int64.
        contents: The json members, or what reads them: at the latest when the batch leaves a worker.
    """

    keys: list[str]
    embedding: Tensor
    frames: Tensor
    contents: list[bytes] | Callable[[], list[bytes]] = field(default_factory=list, repr=False)

    @cached_property
    def metadata(self) -> list[dict[str, Any]]:
        """Metadata of each utterance, as `write_store` was given it; read when it is asked for.

        Raises:
            StoreError: That of an utterance is damaged.
        """
        contents = self.contents() if callable(self.contents) else self.contents
        try:
            return [parse_metadata(content) for content in contents]
        except ValueError as error:
            raise StoreError(
                f"{self.keys[0]} to {self.keys[-1]}: the metadata of one of them is damaged ({error}). Run "
                "inspect-shards --verify, then build-shards or write_store again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "metadata"}
        return {**state, "contents": self.contents() if callable(self.contents) else self.contents}

    def pin_memory(self) -> "EmbeddingBatch":
        """The same batch in page-locked memory."""
        return replace(self, embedding=self.embedding.pin_memory(), frames=self.frames.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "EmbeddingBatch":
        """The same batch on a device."""
        embedding, frames = (each.to(device, non_blocking=non_blocking) for each in (self.embedding, self.frames))
        return replace(self, embedding=embedding, frames=frames)

    def __len__(self) -> int:
        return len(self.keys)


class ShardedEmbeddings(EpochDataset[EmbeddingBatch]):
    """Every stored utterance of a split once an epoch, batch by batch; each iteration is the next epoch.

    Iterate over it, or over `DataLoader(dataset, batch_size=None, num_workers=any)`: the batches do not depend on the
    workers. `EmbeddingLoader` does the same and resumes inside an epoch. The order follows from seed and epoch.

    All ranks have equally many batches. Where the last one has fewer rows than there are ranks, it takes rows of the
    one before. Only with a `batch_size` of 1, or fewer utterances than ranks, some are read twice for that. Ranks that
    iterate equally often read the same epoch; `set_epoch` chooses one.

    Args:
        store: Folder of the store, or its URL, such as s3://bucket/prefix.
        split: train, val or test, or a view such as train_view1.
        batch_size: Utterances per batch and rank; the last batches may be smaller.
        shuffle: Whether to permute each epoch; else utterances come in the order of the shards.
        seed: Seed of the permutations.
        epoch: First epoch.
        rank: Rank of this process; by default that of the process group of torch.distributed, else 0.
        world_size: Ranks that share each epoch; by default likewise, else 1. Given together with `rank`.
        drop_last: Whether to leave out the utterances of an epoch that do not fill the batches of all ranks.
        block_size: Utterances that lie, and are read, together.
        window_blocks: Blocks that are mixed.
        read_ahead_windows: Windows whose shards are read before they are needed, each checked against its digest once;
            0 does neither.

    Attributes:
        epochs: Which epoch the next iteration reads, and how far this one has come.

    Raises:
        StoreError: There is no such store or split, or it has no utterances.
        ConfigError: An argument is wrong.
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
        self.rank, ranks = place_of(rank, world_size)
        self._is_placed = rank is not None
        snapshot = open_snapshot(store, split)
        self.reader = StoreReader([snapshot], split, with_metadata=True)
        if not len(self.reader):
            raise StoreError(f"{store}: split {split!r} has no utterances yet; run build-shards")
        # Rows in the order of the shards: hash order, unless write_store was given another; then a block in hash order
        # would be scattered over all shards.
        count = np.arange(len(self.reader), dtype=np.int64)
        self.order = Order(
            utterance_of_example=count,
            eligible=count,
            seed=whole_number("seed", seed, 0),
            batch_size=whole_number("batch_size", batch_size, 1),
            world_size=ranks,
            shuffle=bool(shuffle),
            dynamic_mixing=False,
            drop_last=bool(drop_last),
            block_size=whole_number("block_size", block_size, 1),
            window_blocks=whole_number("window_blocks", window_blocks, 1),
        )
        if not len(self):
            raise ConfigError(
                f"ShardedEmbeddings: split {split!r} of {store} has {len(count):,} utterances, and drop_last leaves "
                f"none of them, since a step takes {self.order.global_batch:,}; give a smaller batch_size"
            )
        self._bounds = np.minimum(np.arange(len(self) + 1) * self.order.global_batch, len(count))
        if len(self) > 1 and batch_size > 1:
            self._bounds[-2] = min(self._bounds[-2], self._bounds[-1] - ranks)
        self._cut_names = cut_names(snapshot, split, self.reader.keys)
        escaped = pc.any(pc.match_substring(self.reader.keys, "%")).as_py()
        self._keys_are_names = not self._cut_names and not escaped  # as a rule
        self._metadata_files = ShardFiles(self.reader.files.tars)  # batches may be read ahead by a thread meanwhile
        self._read_ahead = ReadAhead([self.reader.files], whole_number("read_ahead_windows", read_ahead_windows, 0))
        self.epochs = Epochs(len(self), Position(whole_number("epoch", epoch, 0), 0))
        middling = self.order.batch_size * self.reader.identity.dim * self.reader.frames.mean()
        self.batch_bytes = int(middling * self.reader.dtype.itemsize)
        pa.default_memory_pool().release_unused()  # Arrow would keep the memory of the plans

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, in every worker."""
        self.epochs.seek(Position(whole_number("epoch", epoch, 0), 0))

    def state_dict(self) -> dict[str, Any]:
        """Position of the next batch, of iterations in this process.

        Raises:
            ConfigError: Workers read the batches, ahead of their use.
        """
        if get_worker_info() is not None or self.epochs.is_read_by_workers:
            raise ConfigError(
                "ShardedEmbeddings.state_dict: its batches are read by workers, ahead of their use, so the dataset "
                "does not know which were used. Iterate over loaders.EmbeddingLoader(dataset, num_workers=...) instead "
                "of a DataLoader, and take the state_dict of that; or begin at an epoch with set_epoch"
            )
        return self.state_at(self.epochs.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken. Raises ConfigError where that was another order of batches."""
        self.epochs.seek(self.position_of(state))

    def state_at(self, position: Position) -> dict[str, Any]:
        """State of a position, with what its order follows from."""
        order = self.order
        return {
            **position._asdict(),
            "keys": self._keys_digest,
            "global_batch": order.global_batch,
            **{name: getattr(order, name) for name in ("seed", "shuffle", "drop_last", "block_size", "window_blocks")},
            "used": int(self._bounds[min(position.batch, len(self))]),  # the last batches depend on the ranks
        }

    @cached_property
    def _keys_digest(self) -> str:
        return digest_table(pa.table({"key": self.reader.keys}))

    def position_of(self, state: dict[str, Any]) -> Position:
        """Position of a state. Raises ConfigError where it is inside an epoch of another order."""
        try:
            position = Position(whole_number("epoch", state["epoch"], 0), whole_number("batch", state["batch"], 0))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"ShardedEmbeddings: {show(state)} is no state_dict of it") from error
        ours = self.state_at(position)
        other = [
            f"{name} {state.get(name)!r}, here {value!r}" for name, value in ours.items() if state.get(name) != value
        ]
        if position.batch and other:
            raise ConfigError(
                f"ShardedEmbeddings: the state is of batch {position.batch} of epoch {position.epoch} in another order "
                f"({'; '.join(other)}). Open the same store with the same arguments, or begin the epoch anew with "
                f"set_epoch({position.epoch})"
            )
        return position

    def __len__(self) -> int:
        """Batches of an epoch, on this rank as on every other."""
        return self.order.num_batches

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        position = self.begin()
        return self.epochs.count(sendable(map(self.batch, self.rows(position))), position)

    def __getitem__(self, index: object) -> Never:
        raise ConfigError(
            f"ShardedEmbeddings[{index!r}]: it is read batch by batch, in its order. For one utterance, "
            "shardwriter.open_store(store, split)[key]; for a shuffled one, take shuffle here and not in the DataLoader"
        )

    def begin(self) -> Position:
        """Begin an iteration in this process, and give its first batch."""
        if not self._is_placed:
            refuse_other_group(self.rank, self.order.world_size)
        return self.epochs.begin()

    def rows(self, position: Position | None = None) -> Iterator[Indices]:
        """Rows of the reader, batch by batch, of this worker; their shards are read ahead meanwhile."""
        epoch, start = position or self.begin()
        worker, order = worker_share(), self.order.epoch(epoch)
        batches = [self._positions(batch) for batch in range(start, len(self))]
        ours = np.concatenate(batches)
        shard = self.reader.shard_of[order.example[ours]]
        with self._read_ahead.start_epoch(shard, order.window[ours], worker) as ahead:
            for positions in batches[worker.number :: worker.of]:
                ahead.advance(int(order.window[positions[-1]]))
                yield order.example[positions]
            ahead.finish()

    def _positions(self, batch: int) -> Indices:
        """Positions of this rank's rows of a batch; at least one."""
        start, stop = self._bounds[batch : batch + 2].tolist()
        first, last = (start + (stop - start) * rank // self.order.world_size for rank in (self.rank, self.rank + 1))
        return np.arange(first, max(last, first + 1), dtype=np.int64)

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
        if not self._keys_are_names:
            keys = [self._cut_names.get(key) or unescape_key(key) for key in keys]
        contents = partial(self.reader.read_metadata, rows, self._metadata_files)
        return EmbeddingBatch(keys=keys, embedding=embedding, frames=torch.from_numpy(frames), contents=contents)
