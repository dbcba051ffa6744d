"""Conversion between tokens and steps of the paths that visit them, in plain PyTorch.

Sizes: B batch, K paths, L tokens, T steps. Paths are (K, T), or (B, K, T) with a table for each
sample.
"""

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, otherwise float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def saved_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the sum before an output in `dtype` is saved for the backward pass.

    The maximum of float16 is 65504, which the sum may exceed when the gated output does not.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def to_steps(x: Tensor, paths: Tensor | None) -> Tensor:
    """Rows of `x` (B, K, L, ...) by step, (B, K, T, ...); index -1 gives zeros."""
    if paths is None:
        return x
    index = paths.clamp(min=0).long()
    b, k = _rows_of(paths)
    rows = x[:, k, index] if b is None else x[b, k, index]
    visited = (paths >= 0).reshape(*paths.shape, *(1,) * (x.dim() - 3))
    return torch.where(visited, rows, rows.new_zeros(()))


def to_tokens(y: Tensor, paths: Tensor | None, length: int) -> Tensor:
    """(B, K, T, ...) back to (B, K, L, ...); tokens never visited get zeros."""
    if paths is None:
        return y
    b, k = _rows_of(paths)
    # zero tokens write to an additional row, which is dropped
    index = torch.where(paths >= 0, paths, length).long()
    rows = y.new_zeros((*y.shape[:2], length + 1, *y.shape[3:]))
    # not in place, because export does not allow that in the decomposition of an operator
    return torch.ops.aten.index_put(rows, [b, k, index], y)[:, :, :length]


def _rows_of(paths: Tensor) -> tuple[Tensor | None, Tensor]:
    """Indices of the batch element (None if all share the table) and of the path."""
    device = paths.device
    k = torch.arange(paths.shape[-2], dtype=torch.int64, device=device).unsqueeze(1)
    if paths.dim() == 2:
        return None, k
    return torch.arange(paths.shape[0], dtype=torch.int64, device=device)[:, None, None], k
