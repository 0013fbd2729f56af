"""Reading one mouth npz: what is good is read whole, what is bad is one MouthError that says where and why."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from helpers.corpus import make_frames, write_mouth

from iianet.errors import MouthError
from shardwriter.corpus.mouth_npz import read_mouth_npz

FRAMES = make_frames(3)


def saved(frames: object, key: str = "data") -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{key: np.asarray(frames)})  # type: ignore[arg-type]
    return stream.getvalue()


def zipped(content: bytes) -> bytes:
    """A complete zip whose data.npy is whatever is given."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.npy", content)
    return stream.getvalue()


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def flipped(needle: bytes, replacement: bytes) -> bytes:
    """A good npz with some bytes gone wrong on the disk."""
    content = saved(FRAMES)
    assert needle in content
    return content.replace(needle, replacement, 1)


def encrypted() -> bytes:
    """A good npz whose headers say that it is encrypted: one bit gone wrong in the directory is enough."""
    content = bytearray(saved(FRAMES))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def damaged_lzma() -> bytes:
    """A zip of another maker's compression, whose first packed bytes have gone wrong."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("data.npy", npy_header("(1, 96, 96)") + FRAMES[0].tobytes())
    content = bytearray(stream.getvalue())
    start = content.index(b"data.npy") + len(b"data.npy")
    content[start + 4] ^= 0xFF
    return bytes(content)


GOOD = saved(FRAMES)
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"not a complete npz \(0 bytes\)"),
    "truncated": (lambda: GOOD[: len(GOOD) // 2], "not a complete npz"),
    "a lone npy": (lambda: npy_header("(1,)") + b"\0", "not a complete npz"),
    "wrong key": (lambda: saved(FRAMES, "mouth"), r"has the keys \['mouth'\]; expected 'data'"),
    "a dimension too few": (lambda: saved(FRAMES[0]), r"is \(96, 96\) uint8; expected \(frames, 96, 96\) uint8"),
    "cropped already": (lambda: saved(FRAMES[:, :88, :88]), r"is \(3, 88, 88\) uint8"),
    "colour": (lambda: saved(np.repeat(FRAMES[..., None], 3, -1)), r"is \(3, 96, 96, 3\) uint8"),
    "float": (lambda: saved(FRAMES.astype(np.float32)), r"is \(3, 96, 96\) float32"),
    "signed": (lambda: saved(FRAMES.astype(np.int8)), r"is \(3, 96, 96\) int8"),
    "pickled": (lambda: saved(np.array([FRAMES, None], dtype=object)), "cannot be decoded .*pickle"),
    "no frames": (lambda: saved(FRAMES[:0]), "has no frames"),
    "wrong pixels": (lambda: flipped(FRAMES[1].tobytes()[:8], b"\0" * 8), "cannot be decoded .*CRC"),
}
ODD: dict[str, tuple[Callable[[], bytes], str]] = {
    "not an npy": (lambda: zipped(b"half"), "np.load hands raw bytes on"),
    "broken npy header": (lambda: flipped(b"(3, 96, 96)", b"(3, 96, 96("), "tokenize.TokenError"),
    "huge npy header": (lambda: zipped(npy_header(f"({10**13}, 96, 96)")), "MemoryError"),
    "shape beyond all numbers": (lambda: zipped(npy_header(f"({10**30}, 96, 96)")), "OverflowError"),
    "shape of text": (lambda: zipped(npy_header("('3', 96, 96)")), "ValueError or TypeError"),
    "damaged lzma": (damaged_lzma, "lzma.LZMAError"),
    "marked as encrypted": (encrypted, "RuntimeError of zipfile"),
}


def test_good_npz_is_read_whole_with_size_time_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "good.npz"
    write_mouth(path, FRAMES)
    found = read_mouth_npz(path)
    np.testing.assert_array_equal(found.frames, FRAMES)
    assert (found.frames.dtype, found.size) == (np.uint8, path.stat().st_size)
    assert found.mtime_ns == path.stat().st_mtime_ns
    assert found.digest == xxhash.xxh3_64_hexdigest(path.read_bytes())


def test_compressed_npz_with_further_keys_is_good(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "good.npz", data=FRAMES, fps=np.array(25))
    np.testing.assert_array_equal(read_mouth_npz(tmp_path / "good.npz").frames, FRAMES)


@pytest.mark.parametrize("kind", BAD)
def test_bad_npz_is_a_mouth_error_that_says_where_and_what(kind: str, tmp_path: Path) -> None:
    make, reason = BAD[kind]
    path = tmp_path / "bad.npz"
    path.write_bytes(make())
    with pytest.raises(MouthError, match=reason) as caught:
        read_mouth_npz(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("kind", ODD)
def test_odd_damage_is_a_mouth_error_too(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(ODD[kind][0]())
    with pytest.raises(MouthError, match=r"'data' cannot be decoded|'data' is no npy array") as caught:
        read_mouth_npz(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("folder", [False, True])
def test_missing_npz_or_a_folder_in_its_place_cannot_be_read(folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "gone.npz"
    if folder:
        path.mkdir()
    with pytest.raises(MouthError, match="cannot be read"):
        read_mouth_npz(path)


def test_a_path_that_cannot_be_one_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MouthError, match=r"cannot be read .*null"):
        read_mouth_npz(tmp_path / "a\0b.npz")


def test_pickle_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    np.savez(tmp_path / "bomb.npz", data=np.array([Bomb()], dtype=object))
    with pytest.raises(MouthError, match="cannot be decoded"):
        read_mouth_npz(tmp_path / "bomb.npz")
    assert not (tmp_path / "ran").exists()
