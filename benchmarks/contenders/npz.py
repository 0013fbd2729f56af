"""The earlier tool's way: one compressed npz of float32 for each utterance."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from made_utterances import embedding_of, key_of, once
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from contenders.contender import BATCH_SIZE, Contender, Loaded

Item = tuple[str, npt.NDArray[np.float16]]


def make(folder: Path, count: int) -> None:
    """Write the files."""
    once(folder / "npz", lambda begun: _write(begun, count))


def contenders(folder: Path, workers: tuple[int, ...]) -> list[Contender]:
    """A map-style Dataset over the files."""
    files = folder / "npz"
    return [
        Contender(
            name="one npz per utterance",
            setting="float32, compressed, DataLoader(shuffle=True)",
            folder=files,
            workers=workers,
            open=lambda n: DataLoader(
                NpzFiles(files),
                BATCH_SIZE,
                shuffle=True,
                num_workers=n,
                persistent_workers=n > 0,
                collate_fn=collate,
            ),
            loaded=_loaded,
        )
    ]


def _write(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in tqdm(range(count), desc="npz", delay=1.0, leave=False):
        np.savez_compressed(folder / f"{key_of(number)}_embedding.npz", embedding=embedding_of(number))


class NpzFiles(Dataset[Item]):
    """Embeddings by number."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npz"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Item:
        path = self.paths[number]
        with np.load(path, allow_pickle=False) as archive:
            return path.name.removesuffix("_embedding.npz"), archive["embedding"].astype(np.float16)


def collate(items: list[Item]) -> Loaded:
    """Stack a batch."""
    return Loaded([key for key, _ in items], torch.from_numpy(np.stack([embedding for _, embedding in items])))


def _loaded(batch: Any) -> Loaded:
    return Loaded(*batch)
