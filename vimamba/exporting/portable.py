"""Replaces operators while a model is captured for a format without them.

The scan and the convolution along paths remain; each format translates them itself.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vimamba.scan_orders import grid_of, path_function, scan_paths
from vimamba_kernels.ssd.chunked import ssd_chunked

# grids on which an order's function, traced with symbolic sizes, must return the order's paths
_GRIDS = ((6, 9), (9, 6), (8, 8), (7, 3), (4, 11))


class Substitutes(TorchFunctionMode):
    """Replaces functions that a model calls by compositions of PyTorch's own operators.

    Args:
        any_size: Compute the scan orders' paths and the cells of adaptive pools from the image's
            size. Otherwise `vimamba::scan_paths` remains, with fixed sizes.
    """

    def __init__(self, *, any_size: bool) -> None:
        super().__init__()
        self.table: dict[Any, Any] = {torch.ops.vimamba.ssd: _ssd}
        if any_size:
            self.table[torch.ops.vimamba.scan_paths] = _scan_paths
            self.table[F.adaptive_avg_pool2d] = _adaptive_avg_pool2d

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the replacement, if there is one."""
        return self.table.get(func, func)(*args, **kwargs or {})


def computes_from_size(scan_order: str) -> bool:
    """Whether a scan order's function also works for symbolic sizes.

    A function that loops over rows in Python, recurses or looks up a table does not.
    """
    grids = [torch.empty(size, dtype=torch.float32, device="cpu") for size in _GRIDS]
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        program = torch.export.export(_Paths(scan_order), (grids[0],), dynamic_shapes=(sizes,))
        traced = program.module()
        pairs = zip(grids, _GRIDS, strict=True)
        return all(torch.equal(traced(grid), scan_paths(scan_order, *size)) for grid, size in pairs)
    except Exception:  # user code run on symbolic sizes can raise anything
        return False


class _Paths(nn.Module):
    """A scan order as a module, whose input has the size of the grid."""

    def __init__(self, scan_order: str) -> None:
        super().__init__()
        self.function = path_function(scan_order)

    def forward(self, grid: Tensor) -> Tensor:
        return self.function(grid.shape[0], grid.shape[1]).long()


def _scan_paths(like: Tensor, order: str, grid: Sequence[int] | None = None) -> Tensor:
    return path_function(order)(*grid_of(like, grid)).long()


def _adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    counts: Any = to_2tuple(output_size)
    rows, columns = (
        _pool_weights(size, size if count is None else count, x)
        for size, count in zip(x.shape[-2:], counts, strict=True)
    )
    return rows @ x @ columns.T


def _pool_weights(size: int, count: int, like: Tensor) -> Tensor:
    """Weights of `size` values in the means of `count` cells, (count, size).

    Cell i extends from floor(i * size / count) to ceil((i + 1) * size / count).
    """
    cell = torch.arange(count, dtype=torch.int64, device=like.device)[:, None]
    start = cell * size // count
    end = ((cell + 1) * size + count - 1) // count
    place = torch.arange(size, dtype=torch.int64, device=like.device)
    inside = (place >= start) & (place < end)
    return inside.to(like.dtype) / (end - start)


def _ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: list[float] | None = None,
    initial_state: Tensor | None = None,
    paths: Tensor | None = None,
    merge: bool = True,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    options = (dt_bias, dt_softplus, dt_limit, initial_state, paths, merge)
    y, state = ssd_chunked(x, dt, A, B, C, D, z, *options)
    return y, state if return_state else state.new_empty((0,))
