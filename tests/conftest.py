"""Fixtures shared by several parts of the tests."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# with several devices, Lightning would start pytest again for each of them
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

# `tests.parity.official` is imported by its full name in any import mode of pytest
sys.path.insert(0, str(Path(__file__).parents[1]))

# A shell starts background commands with SIGINT ignored, and children inherit that; the tests of
# interrupted runs must pass there, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# older cuBLAS is not deterministic without it; read when the first product runs
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Garbage is not collected while tests are collected: it takes a fifth of that time.
gc.disable()


def pytest_collection_finish():
    """Leave everything imported out of later collections, which take half a second with it.

    Lightning, torch.compile and others start many.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def own_orders(monkeypatch):
    """Scan orders registered by a test are forgotten after it."""
    from vimamba.scan_orders import registry

    monkeypatch.setattr(registry, "_SCAN_ORDERS", dict(registry._SCAN_ORDERS))
    yield
    registry.forget_paths()


def save_blank(figure, file, *, dpi=100, metadata=None, **options):
    """A white PNG of the figure's size, with its metadata."""
    text = PngInfo()
    for key, value in (metadata or {}).items():
        text.add_text(key, value)
    width, height = (round(side * dpi) for side in figure.get_size_inches())
    Image.new("L", (width, height), "white").save(file, format="png", pnginfo=text)


@pytest.fixture(autouse=True)
def blank_figures(request, monkeypatch):
    """Do not draw figures, which takes half the time of a short training.

    Tests of pictures are marked `draws`; fixtures of a wider scope draw, too.
    """
    if "matplotlib.figure" in sys.modules and not request.node.get_closest_marker("draws"):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_blank)
