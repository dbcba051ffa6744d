"""The op that models call: compiled, exported, scripted and traced."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from vimamba.scan_orders import (
    scan_paths,
)


class Gather(nn.Module):
    """A model that scans its input, whose size is only known in `forward`."""

    def __init__(self, scan_order: str) -> None:
        super().__init__()
        self.scan_order = scan_order

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order, [height, width])
        return x.flatten(2)[:, :, paths.clamp(min=0).flatten()]


DYNAMIC = ["cross", "local(window=3)", "atrous(step=2)", "raster + windows(size=2)"]


@pytest.mark.parametrize("order", DYNAMIC)
def test_op_compiles_with_dynamic_sizes(order):
    model = Gather(order)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((4, 5), (7, 6), (9, 11)):
        x = torch.randn(2, 3, *size, requires_grad=True)
        y = compiled(x)
        assert torch.equal(y, model(x))
        y.sum().backward()
        assert x.grad is not None


@pytest.mark.parametrize("order", DYNAMIC)
def test_op_exports_with_dynamic_sizes(order):
    model = Gather(order)
    auto = torch.export.Dim.AUTO
    shapes = {"x": {2: auto, 3: auto}}
    program = torch.export.export(model, (torch.randn(1, 2, 6, 7),), dynamic_shapes=shapes)
    for size in ((6, 7), (5, 5), (9, 4)):
        x = torch.randn(1, 2, *size)
        assert torch.equal(program.module()(x), model(x))


def test_op_scripts_and_traces():
    model, x = Gather("local(window=2)"), torch.randn(1, 2, 5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.script(model)
    assert torch.equal(scripted(x), model(x))
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("order", ["cross", "local(window=3)"])
def test_op_passes_opcheck(order):
    x = torch.randn(2, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.vimamba.scan_paths.default, (x, order, [4, 5]))


def test_op_gives_no_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    assert not torch.ops.vimamba.scan_paths(x, "cross", [2, 2]).requires_grad


@pytest.mark.parametrize("grid", [(6,), (4, 5), (2, 3, 4)], ids=str)
def test_op_reads_the_size_of_a_grid(grid):
    x, order = torch.randn(2, *grid, 3), "local(window=3)"
    expected = scan_paths(order, *grid)
    assert torch.equal(torch.ops.vimamba.scan_paths(x, order), expected)
    assert torch.ops.vimamba.scan_paths(x.to("meta"), order).shape == expected.shape
    torch.library.opcheck(torch.ops.vimamba.scan_paths.default, (x, order))


def test_op_asks_for_a_grid():
    with pytest.raises(ValueError, match=r"grid=None must be a list of sizes for .*\(2, 3\)"):
        torch.ops.vimamba.scan_paths(torch.empty(2, 3), "cross")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_op_follows_the_device():
    x = torch.empty(1, device="cuda")
    paths = torch.ops.vimamba.scan_paths(x, "cross", [3, 4])
    assert paths.device == x.device
    assert torch.equal(paths.cpu(), scan_paths("cross", 3, 4))
