"""What would compressing shards save, and what would reading them cost?

    python benchmarks/compression.py [--mouths FOLDER] [--rounds 5] [--output FILE.md]

Embeddings of the project's own video encoder (weights from seed 0) in float32, float16 and int8 with scales, as they
are and through zstd, each utterance alone, so that any can be read without the others. Reading is one copy, or
decompression, of each into memory. Weights that were trained give other embeddings.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from machine import machine
from made_corpus import make_clips
from spread import spread
from tabulate import tabulate
from tqdm import tqdm

from iianet.encoder.mouth import center_crop
from iianet.encoder.source import EncoderSource
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.format.sample import as_stored

DTYPES = ("float32", "float16", "int8")
LEVELS = (1, 3, 9)


class Way(NamedTuple):
    """Of storing: its utterances as they lie on disk, and how all of them are read."""

    dtype: str
    compression: str
    stored: Sequence[bytes]
    read: Callable[[], None]


def main() -> None:
    """Encode, compress, read, and print; --output also writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mouths", type=Path, help="folder of mouth npz; made ones by default")
    parser.add_argument("--clips", type=int, default=64, help="at most so many of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.mouths is None:
            make_clips(Path(folder), arguments.clips, 1)
        paths = sorted((arguments.mouths or Path(folder) / "mouths").glob("*.npz"))[: arguments.clips]
        embeddings = encode([path for path in paths if not path.stem.endswith("_embedding")])
    ways = [way for dtype in DTYPES for way in ways_of(dtype, embeddings)]
    rates = measure(ways, len(embeddings), arguments.rounds)
    what = "made mouths" if arguments.mouths is None else "given mouths"
    text = report(ways, rates, f"{len(embeddings)} embeddings of {what}, {arguments.rounds} rounds")
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def encode(paths: Sequence[Path]) -> list[npt.NDArray[np.float32]]:
    """An embedding `(512, frames)` of each."""
    encoder = EncoderSource(pretrain=None, seed=0).load(torch.device("cpu"))
    clips = (center_crop(torch.from_numpy(read_mouth_npz(path).frames)) for path in paths)
    return [encoder.encode([clip])[0].numpy() for clip in tqdm(clips, total=len(paths), desc="encode", leave=False)]


def ways_of(dtype: str, embeddings: Sequence[npt.NDArray[np.float32]]) -> list[Way]:
    """As it is, and at some levels of zstd."""
    payloads = [payload(embedding, dtype) for embedding in embeddings]
    memory = np.empty(max(map(len, payloads)), dtype=np.uint8)

    def copy() -> None:
        for content in payloads:
            memory[: len(content)] = np.frombuffer(content, dtype=np.uint8)

    ways = [Way(dtype, "none", payloads, copy)]
    for level in LEVELS:
        codec = pa.Codec("zstd", compression_level=level)
        packed = [codec.compress(content, asbytes=True) for content in payloads]
        ways.append(Way(dtype, f"zstd {level}", packed, _unpack(codec, packed, payloads)))
    return ways


def _unpack(codec: pa.Codec, packed: Sequence[bytes], payloads: Sequence[bytes]) -> Callable[[], None]:
    def read() -> None:
        for content, payload in zip(packed, payloads, strict=True):
            assert len(codec.decompress(content, len(payload))) == len(payload)

    return read


def payload(embedding: npt.NDArray[np.float32], dtype: str) -> bytes:
    """The bytes of an embedding as a store holds it, without npy headers."""
    stored = as_stored(embedding, dtype)
    assert stored is not None
    return stored.values.tobytes() + (b"" if stored.scale is None else stored.scale.tobytes())


def measure(ways: Sequence[Way], count: int, rounds: int) -> list[list[float]]:
    """Utterances per second of each way, round by round; each is read about half a second at a time."""
    rates: list[list[float]] = [[] for _ in ways]
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for way, found in zip(ways, rates, strict=True):
            started, repeats = time.perf_counter(), 0
            while (seconds := time.perf_counter() - started) < 0.5:
                way.read()
                repeats += 1
            found.append(repeats * count / seconds)
    return rates


def report(ways: Sequence[Way], rates: Sequence[Sequence[float]], options: str) -> str:
    """The table, in Markdown."""
    rows = []
    raw = 0
    for way, found in zip(ways, rates, strict=True):
        size = sum(map(len, way.stored))
        raw = size if way.compression == "none" else raw
        rows.append((way.dtype, way.compression, size / len(way.stored) / 1000, size / raw, *spread(found)))
    headers = ["dtype", "compression", "KB", "of the same dtype", "utterances/s", "lowest", "highest"]
    table = tabulate(rows, headers=headers, floatfmt=("", "", ".1f", ".2f", ".0f", ".0f", ".0f"), tablefmt="github")
    return f"# Compression\n\n{machine(torch.device('cpu'), 'pyarrow')}\n\n{options}\n\n{table}\n"


if __name__ == "__main__":
    main()
