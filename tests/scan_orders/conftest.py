"""What tests of scan orders share."""

import pytest

from vimamba.scan_orders import registry


@pytest.fixture
def own_orders(monkeypatch):
    """Orders registered by a test are forgotten after it."""
    monkeypatch.setattr(registry, "_SCAN_ORDERS", dict(registry._SCAN_ORDERS))
    yield
    registry.forget_paths()
