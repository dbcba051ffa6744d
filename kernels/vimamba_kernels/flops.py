"""Operation counts of the operators, for tools that count floating-point operations.

A selective scan counts 9 operations per token, path, channel and state, the convention of the
vision-Mamba papers (state-spaces/mamba, issue 110), and one for each multiplication and addition
of the projection of the step sizes; backward counts twice as much. torch's
`FlopCounterMode` counts a multiplication and an addition of a matrix product as two, the papers
as one: their figure is half of its matrix products and convolutions plus the scans.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from vimamba_kernels.mamba3 import op as _mamba3_op  # noqa: F401  registers the operators
from vimamba_kernels.selective_scan import op as _op  # noqa: F401  likewise
from vimamba_kernels.ssd import op as _ssd_op  # noqa: F401  likewise
from vimamba_kernels.tree_scan import op as _tree_op  # noqa: F401  likewise

FLOPS_PER_STATE = 9


def scan_flops(
    delta_shape: Sequence[int],
    A_shape: Sequence[int],
    weight_shape: Sequence[int] | None = None,
) -> int:
    """Operations of one selective scan.

    Args:
        delta_shape: (B, K, L, D), or (B, K, L, R) with a weight.
        A_shape: (K, D, N).
        weight_shape: (K, D, R), or None without a weight.
    """
    _, channels, states = A_shape
    rank = 0 if weight_shape is None else weight_shape[-1]
    return math.prod(delta_shape[:3]) * channels * (FLOPS_PER_STATE * states + rank)


@register_flop_formula(torch.ops.vimamba.selective_scan_forward)
def _forward_flops(*shapes: Any, **_: Any) -> int:
    return scan_flops(shapes[1], shapes[2], shapes[8])


@register_flop_formula(torch.ops.vimamba.selective_scan_backward)
def _backward_flops(grad: Any, *shapes: Any, **_: Any) -> int:
    return 2 * scan_flops(shapes[1], shapes[2], shapes[8])


def _ssd_flops(x_shape: Sequence[int], dt_shape: Sequence[int], B_shape: Sequence[int]) -> int:
    """Mamba-2's scan as the selective scan of its heads' channels."""
    return FLOPS_PER_STATE * math.prod(dt_shape) * x_shape[-1] * B_shape[-1]


@register_flop_formula(torch.ops.vimamba.ssd_forward)
def _ssd_forward_flops(*shapes: Any, **_: Any) -> int:
    return _ssd_flops(shapes[0], shapes[1], shapes[3])


@register_flop_formula(torch.ops.vimamba.ssd_backward)
def _ssd_backward_flops(grad: Any, grad_state: Any, *shapes: Any, **_: Any) -> int:
    return 2 * _ssd_flops(shapes[0], shapes[1], shapes[3])


@register_flop_formula(torch.ops.vimamba.mamba3_forward)
def _mamba3_forward_flops(*shapes: Any, **_: Any) -> int:
    return _ssd_flops(shapes[0], shapes[1], shapes[3])


@register_flop_formula(torch.ops.vimamba.mamba3_backward)
def _mamba3_backward_flops(grad: Any, grad_state: Any, *shapes: Any, **_: Any) -> int:
    return 2 * _ssd_flops(shapes[0], shapes[1], shapes[3])


@register_flop_formula(torch.ops.vimamba.tree_sum_forward)
def _tree_sum_flops(x_shape: Sequence[int], *_: Any, **__: Any) -> int:
    """A multiplication and an addition for each token and channel."""
    return 2 * math.prod(x_shape)


def fvcore_handles() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """Handles for `fvcore.nn.FlopCountAnalysis(model, image).set_op_handle(**handles)`.

    fvcore traces the model, so both names of the operator can occur.
    """

    def count(inputs: list[Any], outputs: list[Any]) -> int:
        delta, A, weight = (inputs[i].type() for i in (1, 2, 8))
        given = weight.kind() == "TensorType"
        return scan_flops(delta.sizes(), A.sizes(), weight.sizes() if given else None)

    names = ("selective_scan", "selective_scan_forward")
    return {f"vimamba::{name}": count for name in names}
