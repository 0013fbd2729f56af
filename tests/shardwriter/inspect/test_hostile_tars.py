"""Tars of a store whose headers lie cost no more than their bytes, and are named."""

import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.builds import tar
from helpers.inspection import run_json

from iianet.errors import StoreError
from shardwriter import write_store
from shardwriter.format.names import ShardName
from shardwriter.format.record import Identity
from shardwriter.format.tar import BLOCK_BYTES, StrictTarInfo
from shardwriter.inspect.own_tar import read_own_tar
from shardwriter.inspect.reindex import reindex

SPARSE_BYTES = 256 << 20


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A block of a tar, whose size may be any number, and whose checksum is right."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse(name: str) -> bytes:
    """A header of a sparse file of a terabyte, without content."""
    block = bytearray(header(name, 0, tarfile.GNUTYPE_SPARSE))
    block[386:398], block[398:410] = b"%011o\0" % 0, b"%011o\0" % 0
    block[483:495] = tarfile.itn(1 << 40, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HEADERS: dict[str, Callable[[str], bytes]] = {
    "negative": lambda name: header(name, -BLOCK_BYTES),
    "very negative": lambda name: header(name, -(1 << 60)),
    "absurd": lambda name: header(name, 1 << 60),
    "sparse": sparse,
    "pax": lambda name: header(name, 1 << 33, tarfile.XHDTYPE),
    "long name": lambda name: header(name, 1 << 33, tarfile.GNUTYPE_LONGNAME),
    "link": lambda name: header(name, 0, tarfile.SYMTYPE),
    "device": lambda name: header(name, 0, tarfile.CHRTYPE),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    samples = [(f"clip{number}", np.full((4, 3), number, dtype=np.float16), {}) for number in range(3)]
    write_store(tmp_path / "store", samples)
    return tmp_path / "store"


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies_is_named_by_reindex_and_nothing_is_written(store: Path, kind: str) -> None:
    path = tar(store, "train")
    content = bytearray(path.read_bytes())
    content[:BLOCK_BYTES] = HEADERS[kind]("clip0.embedding.npy")
    path.write_bytes(content)
    for lost in (*store.glob("*.index"), *store.glob("plan-*"), store / "store.json"):
        lost.unlink()
    before = {found.name for found in store.iterdir()}
    with pytest.raises(StoreError, match=rf"^{path}: .*Take this tar away, or copy it again"):
        reindex(str(store))
    assert {found.name for found in store.iterdir()} - {".lock"} == before - {".lock"}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies_is_found_by_verify(store: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(store, "train")
    content = bytearray(path.read_bytes())
    content[:BLOCK_BYTES] = HEADERS[kind]("clip0.embedding.npy")
    path.write_bytes(content)
    code, document = run_json(capsys, store, "--verify")
    assert code == 1
    named = [problem for problem in document["problems"] if problem.startswith(f"{path.name}: clip0: ")]
    assert named, document["problems"]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_stands_for_a_whole_tar_is_not_read_into_memory(tmp_path: Path, kind: bytes) -> None:
    name = ShardName("train", "0123456789", 0)
    with (tmp_path / f"{name}.tar").open("wb") as stream:
        stream.write(header("clip0.embedding.npy", SPARSE_BYTES, kind))
        stream.truncate(BLOCK_BYTES + SPARSE_BYTES)  # takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="announces 268,435,456 bytes"):
            read_own_tar(tmp_path, name, Identity(dtype="float16", dim=4, fps=25))
        assert tracemalloc.get_traced_memory()[1] < SPARSE_BYTES / 16
    finally:
        tracemalloc.stop()


def test_a_negative_size_ends_a_tar_of_others_too(tmp_path: Path) -> None:
    """It would lead back to what was read already, for ever."""
    path = tmp_path / "other.tar"
    path.write_bytes(header("a.json", 0) + header("b.json", -2 * BLOCK_BYTES) + bytes(20 * BLOCK_BYTES))
    with (
        tarfile.open(path, tarinfo=StrictTarInfo) as archive,
        pytest.raises(tarfile.ReadError, match="announces -1,024 bytes"),
    ):
        for _ in zip(range(100), archive, strict=False):
            pass
