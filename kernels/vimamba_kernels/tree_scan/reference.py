"""The definition of sums along trees, in plain PyTorch.

Sizes: B batch, L tokens, D channels.
"""

import torch
from torch import Tensor

from vimamba_kernels.paths import compute_dtype


def tree_sum_reference(x: Tensor, weight: Tensor, parents: Tensor, upward: bool) -> Tensor:
    """Sums along trees; arguments as the op's.

    With N the matrix of the edges, (1 - N)^-1 = (1 + N) (1 + N^2) (1 + N^4) ...: every step doubles
    the distance that a token sees, so log2(L) steps are enough for any tree.
    Computes in float64 if `x` is float64 and in float32 otherwise; differentiable by autograd.
    """
    dtype = compute_dtype(x)
    y, w = x.to(dtype), weight.to(dtype)
    w = torch.where((parents >= 0).unsqueeze(-1), w, w.new_zeros(()))
    ancestors = parents.clamp(min=0).long()
    # not from the bits of the length, which a symbolic length does not have
    distance = 1
    while distance < x.shape[1]:
        index = ancestors.unsqueeze(-1).expand_as(y)
        y = y.scatter_add(1, index, w * y) if upward else y + w * y.gather(1, index)
        w = w * w.gather(1, index)
        ancestors = ancestors.gather(1, ancestors)
        distance *= 2
    return y.to(x.dtype)


def at_parents(x: Tensor, parents: Tensor) -> Tensor:
    """The values of x (B, L, D) at the parent of every token; zeros at roots."""
    index = parents.clamp(min=0).long().unsqueeze(-1).expand_as(x)
    return torch.where((parents >= 0).unsqueeze(-1), x.gather(1, index), x.new_zeros(()))
