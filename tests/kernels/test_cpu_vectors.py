"""Vectors of the numba kernels."""

import numpy as np
import pytest

numba = pytest.importorskip("numba")


def by_vectors(x):
    from vimamba_kernels.cpu_vectors import LANES, exp2, load_first, store_first

    @numba.njit
    def run(x, y):
        size = np.uint64(x.size)
        for i in range(np.uint64(0), size, LANES):
            store_first(y, i, exp2(load_first(x, i, size - i)), size - i)

    y = np.full(x.size + 1, 7.0, dtype=np.float32)
    run(x, y)
    # nothing is written after the last element
    assert y[-1] == 7.0
    return y[:-1]


def test_powers_of_two_have_float32_precision():
    x = np.linspace(-125.9, 126.9, 100_003, dtype=np.float32)
    right = 2.0 ** x.astype(np.float64)
    # 8.3e-8 of the polynomial, and its rounding
    assert np.abs(by_vectors(x) / right - 1).max() < 1.6e-7


def test_powers_of_two_of_special_numbers():
    infinite = np.inf
    x = np.array([0.0, -0.0, 1.0, -3.0, np.nan, infinite, -infinite, 1e30, -1e30], np.float32)
    y = by_vectors(x)
    np.testing.assert_array_equal(y[:5], np.float32([1.0, 1.0, 2.0, 0.125, np.nan]))
    # the limits are 2**127 and 2**-126 without AVX-512
    assert (y[[5, 7]] >= 2.0**127).all()
    assert (y[[6, 8]] <= 2.0**-126).all()
