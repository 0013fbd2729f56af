"""npy members are read from their bytes, and nothing that would be unpickled."""

import ast
import io
import warnings

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


def headed(text: str) -> bytes:
    """The bytes of an npy that has nothing but a header, of any text."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


DICT = "{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
HOSTILE = {
    "nine thousand minus signs": "-" * 9000,
    "minus signs in a short header": "-" * 4000,
    "brackets": "[" * 4000,
    "digits without an end": DICT.format(descr="'<f4'", shape="(" + "1" * 3000),
    "a number of 3,000 digits": DICT.format(descr="'<f4'", shape=f"({'1' * 3000},)"),
    "spaces": "{" + " " * 4000 + "x}",
    "1,000 axes": DICT.format(descr="'<f4'", shape=f"({'1,' * 1000})"),
    "no values, beyond all numbers": DICT.format(descr="'<f8'", shape=f"(0, {10**18}, {10**18})"),
    "values of no bytes": DICT.format(descr="'|S0'", shape="(3,)"),
    "a structure": DICT.format(descr="[('a', '<f4')]", shape="(3,)"),
    "a key too few": "{'descr': '<f4', 'shape': (3,)}",
    "a call": DICT.format(descr="'<f4'", shape="(3,)") + " + f()",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused_at_once(kind: str) -> None:
    with pytest.raises(
        StoreError, match=r"^here: not an npy \(.*expected|^here: not an npy \(.*no array has|at most 4,096"
    ):
        read_npy(headed(HOSTILE[kind]), "here")


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("{'shape': (2L, 3L,), 'fortran_order': False, 'descr': '<f4'}", (2, 3)),
        ("{'descr':'<f4','fortran_order':False,'shape':(5,)}\n", (5,)),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (), }   \n", ()),
    ],
)
def test_headers_of_other_writers_are_read(text: str, shape: tuple[int, ...]) -> None:
    header = read_npy_header(headed(text), "here")
    assert (header.shape, str(header.dtype), header.column_major) == (shape, "float32", False)
    assert header.data_offset == len(headed(text))


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "<f2", ">f4", "<c8", "<U4", "S3"])
def test_headers_are_what_numpy_reads(dtype: str) -> None:
    content = npy(np.zeros((2, 3), dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = read_npy_header(content, "here")
    stream = io.BytesIO(content)
    np.lib.format.read_magic(stream)
    assert (header.shape, header.column_major, header.dtype) == np.lib.format.read_array_header_1_0(stream)
    assert header.data_offset == stream.tell()


def test_no_header_reaches_python_s_parser_which_is_not_safe_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ast, "literal_eval")
    assert read_npy_header(npy(np.zeros((2, 3))), "here").shape == (2, 3)
