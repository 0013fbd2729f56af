"""int8 embeddings: what rounding keeps."""

import numpy as np
import pytest

from shardwriter.format.sample import as_stored, dequantize, quantize

EMBEDDING = (np.random.default_rng(0).normal(size=(512, 50)) * np.geomspace(1e-6, 1e6, 512)[:, None]).astype(np.float32)


def test_values_come_back_within_half_a_step_of_their_row() -> None:
    values, scale = quantize(EMBEDDING)
    assert (values.dtype, values.shape, scale.dtype, scale.shape) == (np.int8, (512, 50), np.float32, (512,))
    error = np.abs(dequantize(values, scale) - EMBEDDING)
    assert (error <= 0.5001 * scale[:, None]).all()
    np.testing.assert_allclose(scale, np.abs(EMBEDDING).max(axis=1) / 127, rtol=1e-6)


def test_largest_of_a_row_is_127_whatever_its_sign() -> None:
    values, _ = quantize(np.array([[-2, 1, 0], [3, -3, 3]], dtype=np.float32))
    np.testing.assert_array_equal(values, [[-127, 64, 0], [127, -127, 127]])


@pytest.mark.parametrize("small", [0.0, 1e-45, 3e-43, 1e-40])
def test_row_that_is_as_good_as_zero_has_scale_1(small: float) -> None:
    values, scale = quantize(np.array([[small, -small], [127, 0]], dtype=np.float32))
    np.testing.assert_array_equal(values, [[0, 0], [127, 0]])
    np.testing.assert_array_equal(scale, [1, 1])


def test_large_values_stay_finite() -> None:
    found = dequantize(*quantize(np.array([[3e38, -3e38]], dtype=np.float32)))
    np.testing.assert_allclose(found, [[3e38, -3e38]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_may_be_put_into_an_array_of_any_float(dtype: type[np.floating]) -> None:
    values, scale = quantize(EMBEDDING[:400])
    out = np.full((400, 60), np.nan, dtype=dtype)[:, 5:55]
    assert dequantize(values, scale, out) is out
    np.testing.assert_array_equal(out, dequantize(values, scale).astype(dtype))


def test_half_floats_quantize_as_their_values_do() -> None:
    halves = EMBEDDING[:100].astype(np.float16)
    stored = as_stored(halves, "int8")
    assert stored is not None
    np.testing.assert_array_equal(stored.values, quantize(halves.astype(np.float32))[0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_never_stored(dtype: str, bad: float) -> None:
    embedding = np.ones((4, 3), dtype=np.float32)
    embedding[1, 2] = bad
    assert as_stored(embedding, dtype) is None


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_is_read_as_float16_must_fit_in_it(dtype: str) -> None:
    embedding = np.full((4, 3), 1e5, dtype=np.float32)
    assert as_stored(embedding, dtype) is None
    assert as_stored(embedding, "float32") is not None
    assert as_stored(np.full((4, 3), -65504, dtype=np.float32), dtype) is not None


def test_largest_of_float16_stays_finite_through_int8() -> None:
    largest = np.array([[65504, -65504, 3]], dtype=np.float32)
    found = dequantize(*quantize(largest), out=np.empty((1, 3), dtype=np.float16))
    np.testing.assert_array_equal(found[:, :2], largest[:, :2])
