"""The webdataset library, on the shards of our own store."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import webdataset
from made_utterances import DIM, FRAMES
from torch.utils.data import DataLoader

from contenders.contender import BATCH_SIZE, Contender, Loaded
from shardwriter.format.npy import NPY_HEADER_BYTES

MEMBER = "embedding.npy"
BUFFER = 1000
"""Of its shuffle."""


def make(folder: Path, count: int) -> None:
    """Nothing: the store is there."""


def contenders(folder: Path, workers: tuple[int, ...]) -> list[Contender]:
    """With its own decoder, and with the header of each npy cut off by hand, which is its fastest."""
    store = folder / "store"

    def one(setting: str, decode: Callable[[bytes], npt.NDArray[Any]]) -> Contender:
        return Contender(
            name="webdataset 1.0.2",
            setting=f"{setting}, shuffle({BUFFER}), batched({BATCH_SIZE})",
            folder=store,
            workers=tuple(n for n in workers if n <= len(list(store.glob("*.tar")))),
            open=lambda n: DataLoader(
                _pipeline(store, decode), batch_size=None, num_workers=n, persistent_workers=n > 0
            ),
            loaded=lambda batch: batch,
        )

    return [one("npy decoded by NumPy, as it does", _load), one("npy decoded by hand", _cut)]


def _pipeline(store: Path, decode: Callable[[bytes], npt.NDArray[Any]]) -> Any:
    shards = [str(path) for path in sorted(store.glob("*.tar"))]
    samples = webdataset.WebDataset(
        shards,
        shardshuffle=len(shards),
        select_files=_is_embedding,
        empty_check=False,
        nodesplitter=webdataset.split_by_node,
    )
    return (
        samples.shuffle(BUFFER, initial=BUFFER)
        .to_tuple("__key__", MEMBER)
        .map_tuple(_same, decode)
        .batched(BATCH_SIZE, collation_fn=_collate)
    )


def _is_embedding(name: str) -> bool:
    return name.endswith(MEMBER)


def _same(key: str) -> str:
    return key


def _load(content: bytes) -> npt.NDArray[Any]:
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _cut(content: bytes) -> npt.NDArray[Any]:
    return np.frombuffer(content, dtype=np.float16, offset=NPY_HEADER_BYTES).reshape(DIM, FRAMES)


def _collate(items: Sequence[tuple[str, npt.NDArray[Any]]]) -> Loaded:
    return Loaded([key for key, _ in items], torch.from_numpy(np.stack([embedding for _, embedding in items])))
