"""Tars to train on as streams, as other tools make them, and batches that are read from such."""

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile

from helpers.corpus import Corpus
from helpers.foreign_tars import npy, write_tar
from iianet.batch import Batch
from loaders.streams import StreamData

SEGMENT = 640 * 2
"""Length of the segment, in samples, of a corpus whose shortest mouths have 2 frames."""


def stream(corpus: Corpus, words: str | list[str], *overrides: str, rank: int = 0, world_size: int = 1) -> StreamData:
    """Make the data module of tars, as a rank has it; the encoder of tars that no store describes is trusted."""
    config = corpus.config("datamodule.data_config.trust_imported=true", *overrides)
    data = StreamData(config, [words] if isinstance(words, str) else words)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, num_nodes=1, current_epoch=0)  # type: ignore[assignment]
    data.prepare_splits()
    return data


def keys(batches: Iterable[Batch]) -> Counter[str]:
    """Count the rows of batches by key; rows of weight 0 are left out."""
    return Counter(key for batch in batches for key, weight in zip(batch.keys, batch.weight, strict=True) if weight)


def sound(samples: Any, kind: str = "WAV") -> bytes:
    """Write samples as an audio file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def write_shard(path: Path, samples: list[dict[str, Any]]) -> None:
    """Write samples into a tar, as webdataset's writer takes them: members by name, and `__key__`."""
    members = {
        f"{sample['__key__']}.{name}": sample[name] for sample in samples for name in sample if name != "__key__"
    }
    write_tar(path, members)


def foreign(count: int, num_samples: int = SEGMENT, kind: str = "wav", **members: bytes) -> list[dict[str, Any]]:
    """Make samples for `write_shard`: an npy of an embedding, and mixture and source as audio files."""
    noise = np.random.default_rng(count).uniform(-0.4, 0.4, (count, 2, num_samples))
    return [
        {
            "__key__": f"clip{number}",
            "emb.npy": npy(np.full((512, 2), number, dtype=np.float32)),
            f"mixture.{kind}": sound(noise[number].sum(0), kind.upper()),
            f"source.{kind}": sound(noise[number, 0], kind.upper()),
            **members,
        }
        for number in range(count)
    ]
