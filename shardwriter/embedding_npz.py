"""The earlier precompute tool's files: `xxx_embedding.npz` beside `xxx.npz`, `embedding` of `(512, frames)` float32."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from configs.errors import MouthError
from iianet.mouth_npz import DAMAGE
from iianet.video_encoder import EMBEDDING_DIM
from shardwriter.files import atomic_file

EMBEDDING_KEY = "embedding"
NPZ_SUFFIX, EMBEDDING_SUFFIX = ".npz", "_embedding.npz"
READ_DTYPES = ("float32", "float16")
"""float32 is what the tool wrote; float16 loses nothing when it is read as float32."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingNpz:
    """One utterance's embedding as it lay on disk.

    Attributes:
        embedding: `(512, frames)`, float32.
        size: Bytes of the file.
        mtime_ns: Modification time of the file, nanoseconds.
        digest: xxh3_64 of the file, hexadecimal.
    """

    embedding: npt.NDArray[np.float32]
    size: int
    mtime_ns: int
    digest: str


def embedding_path(mouth: str) -> str:
    """Where the earlier tool wrote a mouth npz's embedding."""
    return mouth.removesuffix(NPZ_SUFFIX) + EMBEDDING_SUFFIX


def read_embedding_npz(path: Path) -> EmbeddingNpz:
    """Read such a file whole, once: what is decoded is what was digested.

    Raises:
        MouthError: It is missing, unreadable, truncated, pickled, has no `embedding`, or `embedding` is not
            `(512, frames)` of finite floats with at least one frame.
    """
    try:
        stat = path.stat()
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        raise MouthError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error
    return EmbeddingNpz(
        embedding=_decode(path, content),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        digest=xxhash.xxh3_64_hexdigest(content),
    )


def _decode(path: Path, content: bytes) -> npt.NDArray[np.float32]:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise MouthError(
            f"{path}: not a complete npz ({len(content):,} bytes); expected a zip with the key {EMBEDDING_KEY!r}"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if EMBEDDING_KEY not in archive.files:
                raise MouthError(f"{path}: has the keys {sorted(archive.files)}; expected {EMBEDDING_KEY!r}")
            found: npt.NDArray[np.float32] | bytes = archive[EMBEDDING_KEY]
    except DAMAGE as error:
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} cannot be decoded ({error})") from error
    if isinstance(found, bytes):
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} is no npy array")
    if found.ndim != 2 or found.shape[0] != EMBEDDING_DIM or str(found.dtype) not in READ_DTYPES:
        raise MouthError(
            f"{path}: {EMBEDDING_KEY!r} is {found.shape} {found.dtype}; expected ({EMBEDDING_DIM}, frames) float32"
        )
    if found.shape[1] == 0:
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} has no frames")
    if wrong := int(found.size - np.isfinite(found).sum()):
        raise MouthError(f"{path}: {EMBEDDING_KEY!r} has {wrong} values that are not finite")
    return np.ascontiguousarray(found, dtype=np.float32)


def write_embedding_npz(path: Path, embedding: npt.NDArray[np.float32]) -> None:
    """Write such a file, compressed as the tool did: whole or not at all, the same bytes for the same values."""
    with atomic_file(path) as stream:
        np.savez_compressed(stream, **{EMBEDDING_KEY: embedding})  # type: ignore[arg-type]
