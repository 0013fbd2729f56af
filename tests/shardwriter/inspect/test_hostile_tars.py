"""Tars of a store whose headers lie cost no more than their bytes, and are named."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.builds import tar
from helpers.inspection import run_json

from iianet.errors import StoreError
from shardwriter import write_store
from shardwriter.format.tar import BLOCK_BYTES
from shardwriter.inspect.reindex import reindex


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
