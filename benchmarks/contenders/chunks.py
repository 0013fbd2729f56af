"""litdata and mosaicml-streaming, each on its own format. `make bench-peers` installs them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from made_utterances import DIM, FRAMES, half_of, key_of, once
from torch.utils.data import DataLoader

from contenders.contender import BATCH_SIZE, Contender, Loaded

CHUNK_BYTES = 1 << 26

NOT_NEEDED = {
    "torchvision": (),
    "torchvision.datasets": ("VisionDataset",),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("to_tensor",),
    "transformers": (),
    "transformers.feature_extraction_utils": ("BatchFeature",),
    "transformers.tokenization_utils_base": ("BatchEncoding",),
    "transformers.models": (),
    "transformers.models.auto": (),
    "transformers.models.auto.tokenization_auto": ("AutoTokenizer",),
}
"""What mosaicml-streaming imports for data sets of pictures and texts: each 100 MB and more, and not used here."""


def make(folder: Path, count: int) -> None:
    """Write both formats."""
    once(folder / "litdata", lambda begun: _write_litdata(begun, count))
    once(folder / "mds", lambda begun: _write_mds(begun, count))


def contenders(folder: Path, workers: tuple[int, ...]) -> list[Contender]:
    """Bytes in, one copy into a batch: both are faster so than with arrays in their formats."""
    return [
        Contender(
            name="litdata 0.2.76",
            setting="StreamingDataLoader(shuffle=True), bytes, own collate",
            folder=folder / "litdata",
            workers=workers,
            open=lambda n: _litdata(folder / "litdata", n),
            loaded=lambda batch: batch,
        ),
        Contender(
            name="mosaicml-streaming 0.13.0",
            setting="StreamingDataset(shuffle=True, py1e), bytes, own collate",
            folder=folder / "mds",
            workers=workers,
            open=lambda n: _mds(folder / "mds", n),
            loaded=lambda batch: batch,
        ),
        Contender(
            name="mosaicml-streaming 0.13.0",
            setting="LocalDataset in DataLoader(shuffle=True), bytes, own collate",
            folder=folder / "mds",
            workers=workers,
            open=lambda n: _mds_local(folder / "mds", n),
            loaded=lambda batch: batch,
        ),
    ]


def collate(samples: Sequence[dict[str, Any]]) -> Loaded:
    """One copy, into memory that the batch owns."""
    content = bytearray().join([sample["embedding"] for sample in samples])
    embedding = np.frombuffer(content, dtype=np.float16).reshape(len(samples), DIM, FRAMES)
    return Loaded([sample["key"] for sample in samples], torch.from_numpy(embedding))


def sample_of(number: int) -> dict[str, Any]:
    """An utterance as both formats store it."""
    return {"key": key_of(number), "embedding": half_of(number).tobytes()}


def _write_litdata(folder: Path, count: int) -> None:
    import litdata

    numbers, output = list(range(count)), str(folder)
    litdata.optimize(fn=sample_of, inputs=numbers, output_dir=output, chunk_bytes=CHUNK_BYTES, num_workers=1)


def _litdata(folder: Path, workers: int) -> Any:
    import litdata

    return litdata.StreamingDataLoader(
        litdata.StreamingDataset(str(folder), shuffle=True),
        batch_size=BATCH_SIZE,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )


def _write_mds(folder: Path, count: int) -> None:
    columns = {"key": "str", "embedding": "bytes"}
    with _streaming().MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK_BYTES) as writer:
        for number in range(count):
            writer.write(sample_of(number))


def _mds(folder: Path, workers: int) -> Any:
    dataset = _streaming().StreamingDataset(
        local=str(folder), shuffle=True, shuffle_algo="py1e", batch_size=BATCH_SIZE, num_canonical_nodes=1
    )
    return DataLoader(dataset, BATCH_SIZE, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate)


def _mds_local(folder: Path, workers: int) -> Any:
    return DataLoader(
        _streaming().LocalDataset(local=str(folder)),
        BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )


def _streaming() -> Any:
    for name, attributes in NOT_NEEDED.items():
        module = sys.modules.setdefault(name, ModuleType(name))
        for attribute in attributes:
            setattr(module, attribute, type(attribute, (), {}))
    import streaming

    return streaming
