"""Mamba-3's recurrence on a GPU: Mamba-2's Triton kernels, given the decay of every step.

Sizes: B batch, K paths, T steps, H heads of P channels, N states.
"""

from typing import Any

from torch import Tensor

from vimamba_kernels.ssd import fused as ssd_fused
from vimamba_kernels.ssd.fused import obstacle

__all__ = ["backward", "forward", "obstacle"]

# of Mamba-2's scan: neither softplus nor limits nor paths, whose steps are gathered already
_OPTIONS: dict[str, Any] = {"dt_softplus": False, "dt_limit": None, "paths": None, "merge": False}


def forward(
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """What is read, in the dtype of `x`, and the last state in float32, empty unless wanted.

    Arguments as those of `recurrence_chunked`.
    """
    tensors = (x, weight, log_decay, B, C, None, None, None, first)
    return ssd_fused.forward(*tensors, **_OPTIONS, return_state=return_state)


def backward(
    grad: Tensor,
    grad_state: Tensor,
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of the six tensors, None for an absent one; `grad_state` is empty for zeros."""
    tensors = (x, weight, log_decay, B, C, None, None, None, first)
    last = grad_state if grad_state.numel() else None
    *grads, _D, _z, _bias, dfirst = ssd_fused.backward(grad, last, *tensors, **_OPTIONS)
    return *grads, dfirst
