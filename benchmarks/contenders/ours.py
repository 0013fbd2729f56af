"""Our loaders, and the limit: a plain copy of the same shards out of the page cache."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from made_utterances import UTTERANCE_BYTES, once, utterances
from torch.utils.data import DataLoader

from contenders.contender import BATCH_SIZE, Contender, Loaded
from loaders import PrefetchedEmbeddings, ShardedEmbeddings
from shardwriter import write_store


def make(folder: Path, count: int) -> None:
    """Write the store."""
    empty: dict[str, Any] = {}
    samples = ((key, embedding, empty) for key, embedding in utterances(count))
    once(folder / "store", lambda begun: write_store(begun, samples))


def contenders(folder: Path, workers: tuple[int, ...]) -> list[Contender]:
    """Ours, and the limit; first the one that all are compared with."""
    store = folder / "store"

    def ours(name: str, setting: str, open_: Callable[[int], Iterable[Any]], **options: Any) -> Contender:
        return Contender(name=name, setting=setting, folder=store, open=open_, loaded=_loaded, **options)

    def limit(setting: str, reuse: bool) -> Contender:
        return Contender(
            name="limit: preadv of whole shards",
            setting=setting,
            folder=store,
            workers=(0,),
            open=lambda _: _Copies(store, reuse),
            loaded=None,
        )

    return [
        ours("ShardedEmbeddings", "DataLoader, fresh batches", lambda n: _Epochs(store, n), workers=workers),
        ours(
            "ShardedEmbeddings",
            "its first epoch, which checks digests",
            lambda n: _Epochs(store, n),
            workers=(0,),
            first_epoch=True,
        ),
        ours(
            "ShardedEmbeddings",
            "its first epoch, read_ahead_windows=0: no check",
            lambda n: _Epochs(store, n, read_ahead_windows=0),
            workers=(0,),
            first_epoch=True,
        ),
        ours("PrefetchedEmbeddings", "fresh batches", lambda _: _Ahead(store, reuse=False), workers=(0,)),
        ours("PrefetchedEmbeddings", "lent batches (reuse=True)", lambda _: _Ahead(store, reuse=True), workers=(0,)),
        limit("into fresh memory", False),
        limit("into one buffer", True),
    ]


def _loaded(batch: Any) -> Loaded:
    return Loaded(batch.keys, batch.embedding)


class _Epochs:
    """Each iteration is the next epoch, permuted anew."""

    def __init__(self, store: Path, workers: int, **options: Any) -> None:
        self.dataset = ShardedEmbeddings(store, batch_size=BATCH_SIZE, **options)
        self.epoch = 0
        self.batches: Iterable[Any] = DataLoader(
            self.dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0
        )

    def __iter__(self) -> Iterator[Any]:
        self.dataset.set_epoch(self.epoch)
        self.epoch += 1
        return iter(self.batches)


class _Ahead(_Epochs):
    def __init__(self, store: Path, reuse: bool) -> None:
        super().__init__(store, 0)
        self.batches = PrefetchedEmbeddings(self.dataset, reuse=reuse)


class _Copies:
    """Copies shards whole, as many bytes at a time as a batch has."""

    def __init__(self, store: Path, reuse: bool) -> None:
        self.shards = sorted(store.glob("*.tar"))
        self.reuse = reuse

    def __iter__(self) -> Iterator[int]:
        memory = np.empty(BATCH_SIZE * UTTERANCE_BYTES, dtype=np.uint8).data
        for shard in self.shards:
            descriptor, offset = os.open(shard, os.O_RDONLY), 0
            while count := os.preadv(descriptor, [memory], offset):
                offset += count
                yield count
                if not self.reuse:
                    memory = np.empty(BATCH_SIZE * UTTERANCE_BYTES, dtype=np.uint8).data
            os.close(descriptor)
