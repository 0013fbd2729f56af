"""Reading one mouth npz: what is good is read whole, what is bad is one MouthError that says where and why."""

import ast
import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

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
    "not an npy": (lambda: zipped(b"half"), "it starts with b'half'"),
    "broken npy header": (lambda: flipped(b"(3, 96, 96)", b"(3, 96, 96("), "expected descr, fortran_order and shape"),
    "huge npy header": (
        lambda: zipped(npy_header(f"({10**13}, 96, 96)")),
        "expected at most 281,474,976,710,656 values",
    ),
    "shape beyond all numbers": (
        lambda: zipped(npy_header(f"({10**30}, 96, 96)")),
        "expected descr, fortran_order and shape",
    ),
    "shape of text": (lambda: zipped(npy_header("('3', 96, 96)")), "expected descr, fortran_order and shape"),
    "damaged lzma": (damaged_lzma, "packed by method 14 of zips; expected deflate"),
    "marked as encrypted": (encrypted, "encrypted"),
}


def test_good_npz_is_read_whole_with_size_time_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "good.npz"
    write_mouth(path, FRAMES)
    found = read_mouth_npz(path)
    np.testing.assert_array_equal(found.frames, FRAMES)
    assert (found.frames.dtype, found.source.size) == (np.uint8, path.stat().st_size)
    assert found.source.mtime_ns == path.stat().st_mtime_ns
    assert found.source.digest == xxhash.xxh3_64_hexdigest(path.read_bytes())


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
    make, reason = ODD[kind]
    path = tmp_path / "bad.npz"
    path.write_bytes(make())
    with pytest.raises(MouthError, match=rf"'data' cannot be decoded \(.*{reason}") as caught:
        read_mouth_npz(path)
    assert str(caught.value).startswith(f"{path}: ")


def lying(packed: bytes, size: int, shape: str, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip whose directory says that a few packed bytes are an array of `size` bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("data.npy", npy_header(shape) + packed)
    content = bytearray(stream.getvalue())
    for signature, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        start = content.rindex(signature) + place
        content[start : start + 4] = size.to_bytes(4, "little")
    return bytes(content)


def far_header(place: int) -> bytes:
    """A good npz, but for where its directory says that the array's header lies: a number of 64 bits."""
    content = bytearray(saved(FRAMES))
    entry, end = content.rfind(b"PK\x01\x02"), content.rfind(b"PK\x05\x06")
    name, extra = (int.from_bytes(content[entry + at : entry + at + 2], "little") for at in (28, 30))
    field = b"\x01\x00\x08\x00" + place.to_bytes(8, "little")
    content[end + 12 : end + 16] = (int.from_bytes(content[end + 12 : end + 16], "little") + len(field)).to_bytes(
        4, "little"
    )
    content[entry + 42 : entry + 46] = b"\xff" * 4
    content[entry + 30 : entry + 32] = (extra + len(field)).to_bytes(2, "little")
    content[entry + 46 + name + extra : entry + 46 + name + extra] = field
    return bytes(content)


def directory_of(entries: int) -> bytes:
    """A zip that lists so many empty files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(entries):
            archive.writestr(f"{number}.npy", b"")
    return stream.getvalue()


FRAMES_OF_2_GB = (2 << 30) // (96 * 96)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a header beyond 2 to the 63": (lambda: far_header(1 << 63), ""),
    "a bomb of bzip2": (
        lambda: lying(bytes(1000), 128 + FRAMES_OF_2_GB * 96 * 96, f"({FRAMES_OF_2_GB}, 96, 96)", zipfile.ZIP_BZIP2),
        "packed by method 12 of zips; expected deflate or none",
    ),
    "more than deflate can pack": (
        lambda: lying(b"", 128 + 9216 * 100_000, "(100000, 96, 96)"),
        r"bytes are said to unpack to 921,600,128; expected at most 1,100 times as many",
    ),
    "a shape beyond what the zip holds": (
        lambda: zipped(npy_header("(600000, 96, 96)") + bytes(9216)),
        r"an npy of 9,344 bytes; expected 5,529,600,128 for \(600000, 96, 96\) uint8",
    ),
    "a shape short of what the zip holds": (
        lambda: zipped(npy_header("(1, 96, 96)") + bytes(2 * 9216)),
        r"an npy of 18,560 bytes; expected 9,344",
    ),
    "fewer bytes than both say": (
        lambda: lying(bytes(9216), 128 + 3 * 9216, "(3, 96, 96)"),
        "it unpacks to 9,344 bytes; expected 27,776, as it says",
    ),
    "a long directory": (lambda: directory_of(30_000), "its zip lists files in 1,[0-9,]+ bytes; expected a few arrays"),
    "minus signs": (
        lambda: zipped(b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"-" * 9000),
        "the header '-",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_npz_is_refused_before_it_is_unpacked(kind: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[kind]
    path = tmp_path / "bad.npz"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(MouthError, match=rf"'data' cannot be decoded \(.*({reason})") as caught:
            read_mouth_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_larger_than_any_mouth_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.npz"
    with path.open("wb") as stream:
        stream.truncate(3 << 30)  # sparse
    with pytest.raises(
        MouthError, match=r"huge.npz: cannot be read \(3,221,225,472 bytes; expected at most 2,147,483,648"
    ):
        read_mouth_npz(path)


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


ODD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "FIFO": (fifo, "a folder, a FIFO or a device; expected a regular file"),
    "device": (lambda _: Path("/dev/zero"), "a folder, a FIFO or a device; expected a regular file"),
    "link to a device": (
        lambda path: (path.symlink_to("/dev/zero"), path)[1],
        "a folder, a FIFO or a device; expected",
    ),
    "folder": (lambda path: (path.mkdir(), path)[1], "a folder, a FIFO or a device; expected a regular file"),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_no_regular_file_is_neither_read_nor_waited_for(kind: str, tmp_path: Path) -> None:
    make, reason = ODD_FILES[kind]
    path = make(tmp_path / "odd.npz")
    with pytest.raises(MouthError, match=rf"cannot be read \({reason}") as caught:
        read_mouth_npz(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_no_npz_reaches_python_s_parser_which_is_not_safe_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mouth(tmp_path / "good.npz", FRAMES)
    monkeypatch.delattr(ast, "literal_eval")
    np.testing.assert_array_equal(read_mouth_npz(tmp_path / "good.npz").frames, FRAMES)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_what_numpy_reads_and_may_be_written(
    tmp_path: Path, order: Literal["C", "F"], save: Callable[..., None]
) -> None:
    path = tmp_path / "good.npz"
    save(path, data=np.array(make_frames(1000), order=order))  # more than one piece
    found = read_mouth_npz(path).frames
    with np.load(path) as expected:
        np.testing.assert_array_equal(found, expected["data"])
    assert found.flags.writeable


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


def test_a_mouth_that_memory_does_not_hold_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    write_mouth(tmp_path / "long.npz", FRAMES)
    monkeypatch.setattr("shardwriter.corpus.npz.np.empty", full)
    said = (
        r"long\.npz: 'data' cannot be decoded \(there is too little memory for it\); read fewer at a time, by a lower"
    )
    with pytest.raises(MouthError, match=said):
        read_mouth_npz(tmp_path / "long.npz")
