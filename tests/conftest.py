"""Fixtures shared by several parts of the tests."""

import os
import signal
import sys
from pathlib import Path

import pytest

# with several devices, Lightning would start pytest again for each of them
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

# `tests.parity.official` is imported by its full name in any import mode of pytest
sys.path.insert(0, str(Path(__file__).parents[1]))

# A shell starts background commands with SIGINT ignored, and children inherit that; the tests of
# interrupted runs must pass there, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# older cuBLAS is not deterministic without it; read when the first product runs
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def own_orders(monkeypatch):
    """Scan orders registered by a test are forgotten after it."""
    from vimamba.scan_orders import registry

    monkeypatch.setattr(registry, "_SCAN_ORDERS", dict(registry._SCAN_ORDERS))
    yield
    registry.forget_paths()
