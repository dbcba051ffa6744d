"""Fixtures that several parts of the tests share."""

import os
import signal
import sys
from pathlib import Path

import pytest

# on several devices Lightning would start the whole of pytest again, once for each
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

# `tests.parity.official` is imported by its full name, whatever pytest's import mode
sys.path.insert(0, str(Path(__file__).parents[1]))

# A shell starts what it runs in the background with SIGINT ignored, and children inherit that; the
# tests of interrupted runs must hold there, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# without it cuBLAS of older CUDA refuses to be deterministic; read when the first product runs
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def own_orders(monkeypatch):
    """Scan orders registered by a test are forgotten after it."""
    from vimamba.scan_orders import registry

    monkeypatch.setattr(registry, "_SCAN_ORDERS", dict(registry._SCAN_ORDERS))
    yield
    registry.forget_paths()
