"""The op `scan_paths` that models call: for TorchScript, FX, compile, export, vmap and GPUs.

If a kernel knows that every path visits every token, it need not clear or skip anything. On a GPU
this cannot be checked without synchronizing, but a scan order's table was checked on the CPU when
it was made. Kernels read tokens as int32; all tables of a scan order share one int32 copy.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vimamba.scan_orders.registry import (
    num_paths,
    num_steps,
    scan_paths,
    shared_paths,
    visits_all_cells,
)
from vimamba_kernels.arguments import remember_paths

_library = torch.library.Library("vimamba", "FRAGMENT")
_library.define(
    "scan_paths(Tensor like, str order, SymInt[]? grid=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# integers have no derivative; an autograd function instead would not work with torch.func
_library.impl("scan_paths", torch.library.fallthrough_kernel, "Autograd")


def grid_of(like: Tensor, grid: Sequence[int] | None) -> tuple[int, ...]:
    """The grid of the op `scan_paths`: the given one, or that of a tensor (N, *grid, C).

    Raises:
        ValueError: None is given, and `like` has none.
    """
    if grid is not None:
        return tuple(grid)
    if like.dim() < 3:
        raise ValueError(
            f"grid=None must be a list of sizes for a tensor of shape {tuple(like.shape)}, which "
            "is none of tokens on a grid (N, *grid, C)"
        )
    return tuple(like.shape[1:-1])


@torch.library.impl(_library, "scan_paths", "CompositeExplicitAutograd")
def _scan_paths(like: Tensor, order: str, grid: Sequence[int] | None = None) -> Tensor:
    return scan_paths(order, *grid_of(like, grid), device=like.device)


@torch.library.register_fake("vimamba::scan_paths", lib=_library)
def _scan_paths_fake(like: Tensor, order: str, grid: Sequence[int] | None = None) -> Tensor:
    sizes = grid_of(like, grid)
    shape = num_paths(order, len(sizes)), num_steps(order, *sizes)
    return torch.empty(shape, dtype=torch.int64, device=like.device)


def scan_paths_known(like: Tensor, order: str, grid: Sequence[int] | None = None) -> Tensor:
    """The op on a GPU: the table, marked for the kernels as checked.

    The mark is dropped when the tensor is freed or modified in place.
    """
    sizes = grid_of(like, grid)
    # an inference tensor does not track modifications
    with torch.inference_mode(False):
        paths = scan_paths(order, *sizes, device=like.device)
        narrow = shared_paths(order, *sizes, device=like.device)
    complete = visits_all_cells(order, *sizes)
    remember_paths(paths, math.prod(sizes), complete=complete, narrow=narrow)
    return paths


torch.library.register_kernel("vimamba::scan_paths", "cuda", scan_paths_known, lib=_library)


def _scan_paths_of_all(
    info: Any,
    dims: tuple[Any, ...],
    like: Tensor,
    order: str,
    grid: Sequence[int] | None = None,
) -> tuple[Tensor, None]:
    """All samples share the table."""
    one = like if dims[0] is None else like.select(dims[0], 0)
    return torch.ops.vimamba.scan_paths(one, order, grid), None


torch.library.register_vmap("vimamba::scan_paths", _scan_paths_of_all, lib=_library)
