"""npy members are read from their bytes, and nothing that would be unpickled."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from iianet.errors import StoreError
from shardwriter.format.npy import read_npy, read_npy_header


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0)])
def test_an_npy_is_read_as_it_was_written(version: tuple[int, int], order: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape), order=order)
    found = read_npy(npy(array, version), "here")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


def test_objects_are_refused_before_they_are_unpickled() -> None:
    with pytest.raises(StoreError, match=r"^here: an npy of Python objects"):
        read_npy(npy(np.array([{}], dtype=object)), "here")


@pytest.mark.parametrize("cut", [-1, 1])
def test_an_npy_of_another_length_than_it_says_is_refused(cut: int) -> None:
    content = npy(np.zeros(4))
    with pytest.raises(StoreError, match=r"^here: an npy of 1[0-9]{2} bytes; expected 160 for \(4,\) float64"):
        read_npy(content + b"x" if cut > 0 else content[:cut], "here")


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00\x10\x00nonsense", npy(np.zeros(1))[:40]])
def test_what_is_no_npy_is_refused(content: bytes) -> None:
    with pytest.raises(StoreError, match=r"^here: not an npy"):
        read_npy_header(content, "here")


def test_version_3_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match=r"version \(3, 0\); expected 1.0 or 2.0"):
        read_npy_header(npy(np.zeros(1), (3, 0)), "here")


@pytest.mark.parametrize(
    ("found", "changed"), [(b"{'descr", b"\xd7'descr"), (b"(0, 10)", b"(0, -1)"), (b"<f8", b"<!8")]
)
def test_a_header_that_cannot_be_parsed_is_refused(found: bytes, changed: bytes) -> None:
    content = npy(np.zeros((0, 10)))
    assert found in content
    with pytest.raises(StoreError, match=r"^here: not an npy"):
        read_npy(content.replace(found, changed), "here")


def with_header(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "header",
    [
        b"-" * 9000,
        b"{" * 9000,
        b"[" * 60_000,
        b"{'descr': '<f2', 'fortran_order': False, 'shape': (" + b"1, " * 2000 + b"), }",
        b"{'descr': '<f2', 'fortran_order': False, 'shape': (0, 9999999999999999999), }",
        b"{'descr': '<U0', 'fortran_order': False, 'shape': (9999999,), }",
        b"{'descr': '<f2', 'fortran_order': False, 'shape': __import__('os').getpid(), }",
        b"{'descr': '<f2', 'fortran_order': False, 'shape': (1,), 'shape': (2,), }",
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
    ],
    ids=range(9),
)
def test_a_hostile_header_is_refused_in_bounded_time(header: bytes) -> None:
    with pytest.raises(StoreError, match=r"^here: not an npy \(.*expected|^here: not an npy \(the dtype"):
        read_npy(with_header(header), "here")


def test_headers_are_read_the_same_in_many_threads() -> None:
    """Python's own evaluation of literals, which NumPy uses, is not safe in threads on 3.11."""
    content = npy(np.zeros((5, 96, 96), dtype=np.uint8))
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: read_npy_header(content, "here").shape, range(2000)))
    assert found == {(5, 96, 96)}


@pytest.mark.parametrize(
    "header",
    [
        b'{"shape":(2,3),"fortran_order":False,"descr":"<f4"}',
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }",
    ],
)
def test_headers_of_other_writers_are_read(header: bytes) -> None:
    found = read_npy_header(with_header(header + b"   \n"), "here")
    assert (found.shape, found.dtype, found.data_bytes) == ((2, 3), np.float32, 24)


@pytest.mark.parametrize("dtype", ["O", "|O", "O8", "|O8", "T", "<T"])
def test_every_spelling_of_objects_is_refused(dtype: str) -> None:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': (1,), }}".encode().ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16)
    with pytest.raises(StoreError, match=r"^here: "):
        read_npy(content, "here")
