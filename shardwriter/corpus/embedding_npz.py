"""The earlier precompute tool's files: `xxx_embedding.npz` beside `xxx.npz`, `embedding` of `(512, frames)` float32."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iianet.errors import MouthError
from shardwriter.corpus.npz import NpzFile, read_npz
from shardwriter.format.files import atomic_file

EMBEDDING_KEY = "embedding"
NPZ_SUFFIX, EMBEDDING_SUFFIX = ".npz", "_embedding.npz"
READ_DTYPES = ("float32", "float16")
"""float32 is what the tool wrote; float16 loses nothing when it is read as float32."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingNpz(NpzFile):
    """One utterance's embedding as it lay on disk.

    Attributes:
        embedding: `(dim, frames)`, float32.
    """

    embedding: npt.NDArray[np.float32]


def embedding_path(mouth: str) -> str:
    """Where the earlier tool wrote a mouth npz's embedding."""
    return mouth.removesuffix(NPZ_SUFFIX) + EMBEDDING_SUFFIX


def read_embedding_npz(path: Path, dim: int) -> EmbeddingNpz:
    """Read such a file whole, once.

    Raises:
        MouthError: See `read_npz`; or `embedding` is not `(dim, frames)` of finite floats with at least one frame.
    """
    found, file = read_npz(path, EMBEDDING_KEY)
    if found.ndim != 2 or found.shape[0] != dim or str(found.dtype) not in READ_DTYPES:
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} is {found.shape} {found.dtype}; expected ({dim}, frames) float32")
    if found.shape[1] == 0:
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} has no frames")
    if wrong := int(found.size - np.isfinite(found).sum()):
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} has {wrong} values that are not finite")
    embedding = np.ascontiguousarray(found, dtype=np.float32)
    return EmbeddingNpz(embedding=embedding, size=file.size, mtime_ns=file.mtime_ns, digest=file.digest)


def write_embedding_npz(path: Path, embedding: npt.NDArray[np.float32]) -> None:
    """Write such a file, compressed as the tool did: whole or not at all, the same bytes for the same values."""
    with atomic_file(path) as stream:
        np.savez_compressed(stream, **{EMBEDDING_KEY: embedding})  # type: ignore[arg-type]
