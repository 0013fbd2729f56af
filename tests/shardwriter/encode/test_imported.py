"""An earlier tool's embedding is taken as it is, or refused with the reason."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from helpers.builds import load_npy
from helpers.corpus import make_frames, write_mouth

from iianet.encoder.clip_encoder import ClipEncoder
from shardwriter.corpus.embedding_npz import embedding_path, write_embedding_npz
from shardwriter.encode.imported import read_embedding
from shardwriter.format.names import EMBEDDING_MEMBER
from shardwriter.format.sample import Failed, Sample
from shardwriter.store.identity import imported_identity

FRAMES = 60
MOUTH = "mouths/ann.npz"
FILE = "mouths/ann_embedding.npz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A corpus of one mouth."""
    write_mouth(tmp_path / MOUTH, make_frames(FRAMES))
    return tmp_path


def read(root: Path, dtype: str = "float32") -> Sample | Failed:
    row = {"key": "ann", "utterance": "ann", "mouth": MOUTH, "audio": []}
    return read_embedding(row, root, imported_identity(ClipEncoder, dtype))


def taken(root: Path, dtype: str = "float32") -> npt.NDArray[Any]:
    """The embedding, as it is stored."""
    found = read(root, dtype)
    assert isinstance(found, Sample)
    return load_npy(found.members[EMBEDDING_MEMBER])


def reason(root: Path) -> str:
    found = read(root)
    assert isinstance(found, Failed)
    return found.reason


def values(frames: int = FRAMES) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(512, frames)).astype(np.float32)


def save(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez_compressed(path, **arrays)


def cut_short(path: Path) -> None:
    write_embedding_npz(path, values())
    path.write_bytes(path.read_bytes()[:-100])


def not_finite() -> npt.NDArray[np.float32]:
    broken = values()
    broken[3, 4:6] = np.nan, np.inf
    return broken


def test_the_file_lies_beside_the_mouth() -> None:
    assert embedding_path("a.npz.d/ann.npz") == "a.npz.d/ann_embedding.npz"


def test_an_embedding_is_taken_to_the_bit_and_remembered_by_its_file(root: Path) -> None:
    np.savez_compressed(root / FILE, embedding=values())
    stat = (root / FILE).stat()
    assert taken(root).dtype == np.float32
    np.testing.assert_array_equal(taken(root), values())
    digest = xxhash.xxh3_64_hexdigest((root / FILE).read_bytes())
    source = read(root).source
    assert (source.mouth, source.size, source.mtime_ns, source.digest) == (FILE, stat.st_size, stat.st_mtime_ns, digest)


def test_float16_is_taken_too_since_it_loses_nothing(root: Path) -> None:
    np.savez(root / FILE, embedding=values().astype(np.float16))
    for dtype in ("float32", "float16"):
        assert taken(root, dtype).dtype == dtype
        np.testing.assert_array_equal(taken(root, dtype), values().astype(np.float16))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda _path: None, "cannot be read (No such file or directory)"),
    "truncated": (cut_short, "not a complete npz"),
    "other key": (save(data=values()), "has the keys ['data']; expected 'embedding'"),
    "objects": (
        save(embedding=np.array([{}], dtype=object)),
        "'embedding' cannot be decoded",
    ),
    "batch of one": (
        save(embedding=values()[None]),
        "'embedding' is (1, 512, 60) float32; expected (512, frames) float32",
    ),
    "on its side": (save(embedding=values().T), "'embedding' is (60, 512) float32; expected (512, frames) float32"),
    "double": (
        save(embedding=values().astype(np.float64)),
        "'embedding' is (512, 60) float64; expected (512, frames) float32",
    ),
    "empty": (save(embedding=values(0)), "'embedding' has no frames"),
    "not finite": (
        save(embedding=not_finite()),
        "'embedding' has 2 values that are not finite",
    ),
    "cut by batched mode": (
        save(embedding=values(50)),
        "has 50 frames, ann.npz has 60: the earlier tool's batched mode cut clips to 50",
    ),
    "cut": (save(embedding=values(59)), "has 59 frames, ann.npz has 60: it was cut"),
    "padded by batched mode": (
        save(embedding=values(75)),
        "has 75 frames, ann.npz has 60: the earlier tool's batched mode stored padding as data",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_with_a_file_is_its_reason(root: Path, kind: str) -> None:
    make, expected = BROKEN[kind]
    make(root / FILE)
    found = read(root)
    assert isinstance(found, Failed)
    assert found.reason.startswith(f"{FILE}: {expected}")  # and names no folder of the machine it is from
    assert found.source.mouth == FILE
    assert found.source.digest is None


def test_a_mouth_that_is_gone_or_broken_leaves_the_embedding_unchecked(root: Path) -> None:
    np.savez(root / FILE, embedding=values())
    (root / MOUTH).write_bytes(b"junk")
    assert "cannot be checked against its mouth: ann.npz: not a complete npz (4 bytes)" in reason(root)
    os.unlink(root / MOUTH)
    assert "cannot be checked against its mouth: ann.npz: cannot be read (No such file" in reason(root)


@pytest.mark.parametrize("frames", [make_frames(FRAMES)[0], np.zeros((), dtype=np.uint8)])
def test_a_mouth_without_frames_is_named(root: Path, frames: npt.NDArray[np.uint8]) -> None:
    np.savez(root / FILE, embedding=values())
    write_mouth(root / MOUTH, frames)
    assert f"'data' in ann.npz is {frames.shape}" in reason(root)
