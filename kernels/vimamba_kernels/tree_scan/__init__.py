"""Sums along trees, and the spanning tree of a grid: two operators, several backends.

`grid_tree` and `tree_sum` check their arguments and call `torch.ops.vimamba.grid_tree` and
`torch.ops.vimamba.tree_sum` (op.py), which models call directly. reference.py and
spanning.py are the definitions; cpu.py computes the same faster. MambaTree (arXiv:2406.02395) scans
with these operators.
"""

import torch
from torch import Tensor

from vimamba_kernels.tree_scan import op as _op  # noqa: F401  registers the operators
from vimamba_kernels.tree_scan.checks import check_arguments, check_edges, check_parents

__all__ = ["grid_tree", "tree_sum"]


def grid_tree(down: Tensor, right: Tensor, *, backend: str = "auto") -> Tensor:
    """The minimum spanning tree of a grid whose neighboring cells are connected.

    Of edges of equal weight, the first is taken; the edges to the cells below come before those to
    the cells on the right, each in raster order. The root is the first cell. The result has no
    gradient.

    Args:
        down: (B, H - 1, W), weights of the edges to the cells below; no NaN.
        right: (B, H, W - 1), those to the cells on the right.
        backend: "cpu" (compiled by numba) or "reference" (PyTorch); "auto" uses the environment
            variable VIMAMBA_BACKEND or else the fastest one that can run.

    Returns:
        (B, H * W) int64, the parent of every cell as an index in raster order; -1 at the root.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: A shape, a device or the backend is wrong.
    """
    check_edges(down, right)
    return torch.ops.vimamba.grid_tree(down, right, backend)


def tree_sum(
    x: Tensor, weight: Tensor, parents: Tensor, *, upward: bool, backend: str = "auto"
) -> Tensor:
    """Sums of tokens along the edges of trees, each channel by itself.

    With `upward`, every token adds its children, from the leaves to the root; otherwise it adds its
    parent, from the root to the leaves:

        y[i] = x[i] + sum over children c of i of weight[c] * y[c]
        y[i] = x[i] + weight[i] * y[parent of i]

    Each is the transpose of the other, and therefore its gradient.

    Args:
        x: (B, L, D); float64, float32, float16 or bfloat16.
        weight: (B, L, D), of the edge from each token to its parent; any floating dtype. Weights
            of roots are not used.
        parents: (B, L) int32 or int64 in [-1, L); -1 for roots.
        upward: The direction.
        backend: "cpu" (compiled by numba) or "reference" (PyTorch); "auto" uses the environment
            variable VIMAMBA_BACKEND or else the fastest one that can run.

    Returns:
        (B, L, D) in the dtype of `x`.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: A shape, a device or the backend is wrong, or `parents` does not describe trees.
    """
    check_arguments(x, weight, parents)
    check_parents(parents)
    return torch.ops.vimamba.tree_sum(x, weight, parents, upward, backend)
