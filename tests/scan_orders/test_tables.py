"""Tables are built once per order, grid and device, and shared."""

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vimamba.scan_orders import (
    register_scan_order,
    registry,
    scan_paths,
)


def test_returned_paths_may_be_changed():
    for function in (
        scan_paths,
        lambda order, *grid: torch.ops.vimamba.scan_paths(torch.empty(0), order, grid),
    ):
        function("cross", 2, 2).fill_(9)
        assert function("cross", 2, 2).max() == 3


def test_tables_made_under_a_mode_serve_outside_of_it(own_orders):
    register_scan_order(lambda height, width: torch.arange(height * width)[None], name="fresh")
    with FakeTensorMode():
        assert torch.ops.vimamba.scan_paths(torch.empty(0), "fresh", [2, 3]).shape == (1, 6)
    with torch.device("meta"), torch.inference_mode():
        assert scan_paths("fresh", 2, 2).device.type == "cpu"
    paths = scan_paths("fresh", 2, 2)
    assert not paths.is_inference()
    assert paths.tolist() == [[0, 1, 2, 3]]


class Copies(TorchDispatchMode):
    """Records the devices to which tensors are copied."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.seen.append(kwargs["device"])
        return func(*args, **kwargs or {})


def test_the_callers_modes_do_not_reach_the_copy_for_a_device(own_orders):
    """During the warm-up of CUDA graphs, the caller's memory is reclaimed afterward."""
    register_scan_order(lambda height, width: torch.arange(height * width)[None], name="fresh")
    with Copies() as copies:
        paths = scan_paths("fresh", 2, 2, device="meta")
    assert paths.device.type == "meta"
    assert copies.seen == []


def test_a_table_that_a_cuda_graph_reads_is_kept(own_orders, monkeypatch):
    register_scan_order(lambda height, width: torch.arange(height * width)[None], name="fresh")
    monkeypatch.setattr(registry, "_captured_tables", {})
    scan_paths("fresh", 2, 2)
    kept = weakref.ref(registry.shared_paths("fresh", 2, 2))
    passing = weakref.ref(registry.shared_paths("fresh", 3, 3))
    with monkeypatch.context() as capture:
        capture.setattr(registry, "_is_captured", lambda device: True)
        scan_paths("fresh", 2, 2)
        scan_paths("fresh", 2, 2)
    registry._table.cache_clear()
    assert kept() is not None
    assert passing() is None
    assert len(registry._captured_tables) == 1


def test_a_table_cannot_be_made_within_a_cuda_graph(monkeypatch):
    monkeypatch.setattr(registry, "_is_captured", lambda device: True)
    with pytest.raises(
        RuntimeError, match=r"'cross' on a 19x23 grid .* run the model once at this"
    ):
        scan_paths("cross", 19, 23)


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(registry, "_table", lambda _, grid, device: torch.tensor(device.index))
    assert scan_paths("cross", 2, 2, device="cuda") == 3
