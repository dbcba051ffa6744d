"""Tokens along paths as tensors of their own, for mixers that do more with a path than an operator.

The operators follow paths without copying tokens; these functions copy.

Sizes: N batch, L tokens, C channels, K paths of T steps; a step of -1 has no token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def along_paths(x: Tensor, paths: Tensor) -> Tensor:
    """Tokens (N, L, C) along paths (K, T), with zeros where a step has no token: (N, K, T, C)."""
    return F.pad(x, (0, 0, 0, 1))[:, paths]  # -1 is the row of zeros at the end


def sum_paths(y: Tensor, paths: Tensor, length: int) -> Tensor:
    """Steps (N, K, T, C) of paths (K, T) back at the tokens, and summed over the paths: (N, L, C).

    Args:
        y: The result of every step.
        paths: Every path visits a token at most once; a token that it does not visit gets zeros.
        length: L.
    """
    step = torch.arange(paths.shape[1], device=paths.device, dtype=torch.int64)
    step = step.expand_as(paths)
    visited = torch.where(paths >= 0, paths, length)
    # the step that visits each token; -1, the row of zeros at the end, if none does
    table = torch.full((paths.shape[0], length + 1), -1, device=paths.device, dtype=step.dtype)
    table = table.scatter(1, visited, step)[:, :length]
    path = torch.arange(paths.shape[0], device=paths.device, dtype=torch.int64)
    path = path.unsqueeze(1)
    return F.pad(y, (0, 0, 0, 1))[:, path, table].sum(1)


def pad_tokens(x: Tensor, paths: Tensor) -> Tensor:
    """Zero tokens after tokens (N, L, C), as many as paths (K, T) have steps beyond L."""
    # a slice beyond the end is empty, also in a trace
    zeros = x.new_zeros((1, paths.shape[-1], 1))[:, x.shape[1] :]
    return torch.cat([x, zeros.expand(x.shape[0], -1, x.shape[2])], dim=1)


def visit_padding(paths: Tensor, num_tokens: int) -> Tensor:
    """Let paths (K, T) over L tokens visit those of `pad_tokens` where they visit no token."""
    missing = paths < 0
    extra = num_tokens - 1 + missing.cumsum(-1)
    return torch.where(missing & (extra < paths.shape[-1]), extra, paths)
