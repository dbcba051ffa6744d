"""The tree operators on a CPU: drives the numba kernels of cpu_kernels.py.

Sizes: B batch, L tokens, D channels, H and W grid.
"""

from functools import cache

import torch
from torch import Tensor

from vimamba_kernels.cpu_tasks import Kernel, block_width, compile_kernel, flat, run
from vimamba_kernels.tree_scan.checks import check_bounds


def tree_sum(x: Tensor, weight: Tensor, parents: Tensor, upward: bool) -> Tensor:
    """Sums along trees, in the dtype of `x`; arguments as the op's.

    Raises:
        ValueError: `parents` is out of bounds.
    """
    check_bounds(parents)
    batch, length, channels = x.shape
    y = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    width = block_width(channels, batch, torch.get_num_threads())
    tasks = batch * -(-channels // width)
    team = min(torch.get_num_threads(), tasks)
    sizes = (batch, 1, length, 0, channels, 1, 0, width)
    tensors = (y, flat(weight), _whole(parents), _memory(team, length))
    run(_kernel("tree_sum"), tensors, (), (*sizes, upward), tasks, team)
    return y.to(x.dtype)


def grid_tree(down: Tensor, right: Tensor) -> Tensor:
    """Parents of all cells; arguments as the op's."""
    batch, height, width = right.shape[0], right.shape[1], down.shape[2]
    weights = torch.cat([down.flatten(1), right.flatten(1)], dim=1)
    edges = _whole(weights.argsort(dim=1, stable=True))
    parents = torch.empty((batch, height * width), dtype=torch.int32, device="cpu")
    team = min(torch.get_num_threads(), batch)
    memory = _memory(team, height * width)
    run(_kernel("grid_tree"), (edges, parents, memory), (), (height, width), batch, team)
    return parents.long()


def _whole(t: Tensor) -> Tensor:
    return t.to(torch.int32).contiguous()


def _memory(team: int, length: int) -> Tensor:
    """Uninitialized memory of two numbers per token, for each thread."""
    return torch.empty(team * 2 * length, dtype=torch.int32, device="cpu")


@cache
def _kernel(name: str) -> Kernel:
    return compile_kernel("vimamba_kernels.tree_scan.cpu_kernels", name)
