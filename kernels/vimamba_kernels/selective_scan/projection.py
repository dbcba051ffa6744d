"""The step sizes of a scan from a low-rank factor, by matrix products.

Sizes: B batch, K paths, L tokens, D channels, R rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vimamba_kernels.paths import compute_dtype


def project_steps(delta: Tensor, delta_weight: Tensor | None) -> Tensor:
    """(B, K, L, D): the factor `delta` (B, K, L, R) times `delta_weight` (K, D, R), or `delta`.

    The product is float64 if `delta` is, and float32 otherwise.
    """
    if delta_weight is None:
        return delta
    dtype = compute_dtype(delta)
    return delta.to(dtype) @ delta_weight.to(dtype).transpose(1, 2)


def project_gradients(
    grad: Tensor, delta: Tensor, delta_weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `delta` and `delta_weight`; `grad` is that of the output of `project_steps`."""
    if delta_weight is None:
        return grad, None
    weight, factor = delta_weight.to(grad.dtype), delta.to(grad.dtype)
    with flushed_denormals():
        # one product per batch element, because L * B rows at once would need a copy; in this
        # order it takes 0.6 times as long
        grad_weight = torch.matmul(factor.transpose(2, 3), grad).sum(0).transpose(1, 2)
        return grad @ weight, grad_weight


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Let this thread compute zero instead of denormal numbers, as the kernels do."""
    before = _SMALLEST + _SMALLEST == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


_SMALLEST = 5e-324
