"""Tolerances between two computations of the same numbers.

Bitwise equality is required only where it is promised: copies of data, integers, and one object
that repeats a computation with the same seeds and the same number of threads.
"""

import pytest
import torch


def assert_same(ours, theirs):
    """Results of one computation by two objects, or in two arrangements, in float32.

    PyTorch's order of summation depends on the processor and on a tensor's address in memory. Two
    networks with equal weights then differ in the last digits, as timm's ResNet does: 4e-9 for
    outputs below 1 on an AMD processor, if one has read its weights from a mapped file.
    """
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def assert_same_rounded(ours, theirs):
    """The same for results in half precision.

    Differences in the last digits of float32 rarely change its rounding: by one step, and in far
    less than one number in a hundred.
    """
    assert ours.dtype == theirs.dtype != torch.float32
    step = torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=step, atol=1e-6)
    assert (ours != theirs).float().mean() < 0.01


def assert_same_report(ours, theirs):
    """Scores of equal networks: names and counts exactly, the rest as in `assert_same`."""
    found, expected = dict(_flat(ours)), dict(_flat(theirs))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        is_number = isinstance(value, float)
        assert found[name] == (pytest.approx(value, rel=1e-4, abs=1e-5) if is_number else value)


def _flat(report, name=""):
    """Names and values of a report's innermost entries; numbers of a CSV file become numbers."""
    if isinstance(report, dict | list):
        pairs = report.items() if isinstance(report, dict) else enumerate(report)
        for key, value in pairs:
            yield from _flat(value, f"{name}.{key}")
        return
    try:
        yield name, float(report) if isinstance(report, str) else report
    except ValueError:
        yield name, report
