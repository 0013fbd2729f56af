"""The earlier precompute tool's files: `xxx_embedding.npz` beside `xxx.npz`, `embedding` of `(512, frames)` float32."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iianet.errors import MouthError
from shardwriter.corpus.npz import read_npz
from shardwriter.format.files import atomic_file
from shardwriter.format.sample import Source

EMBEDDING_KEY = "embedding"
NPZ_SUFFIX, EMBEDDING_SUFFIX = ".npz", "_embedding.npz"
READ_DTYPES = ("float32", "float16")
"""float32 is what the tool wrote; float16 loses nothing when it is read as float32."""


class EmbeddingNpz(NamedTuple):
    """One utterance's embedding, `(dim, frames)`, float32, and its file as it lay on disk."""

    embedding: npt.NDArray[np.float32]
    source: Source


def embedding_path(mouth: str) -> str:
    """Where the earlier tool wrote a mouth npz's embedding."""
    return mouth.removesuffix(NPZ_SUFFIX) + EMBEDDING_SUFFIX


def read_embedding_npz(path: Path, dim: int) -> EmbeddingNpz:
    """Read such a file whole, once.

    Raises:
        MouthError: See `read_npz`; or `embedding` is not `(dim, frames)` of finite floats with at least one frame.
    """
    found, source = read_npz(path, EMBEDDING_KEY)
    if found.ndim != 2 or found.shape[0] != dim or str(found.dtype) not in READ_DTYPES:
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} is {found.shape} {found.dtype}; expected ({dim}, frames) float32")
    if found.shape[1] == 0:
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} has no frames")
    if wrong := int(found.size - np.isfinite(found).sum()):
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} has {wrong} values that are not finite")
    return EmbeddingNpz(np.ascontiguousarray(found, dtype=np.float32), source)


def write_embedding_npz(path: Path, embedding: npt.NDArray[np.float32]) -> None:
    """Write such a file, compressed as the tool did: whole or not at all, the same bytes for the same values."""
    with atomic_file(path) as stream:
        np.savez_compressed(stream, **{EMBEDDING_KEY: embedding})  # type: ignore[arg-type]
