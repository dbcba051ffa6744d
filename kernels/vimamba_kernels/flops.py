"""What the operators cost, for tools that count floating-point operations.

A selective scan counts 9 operations per token, path, channel and state, the convention of the
vision-Mamba papers (state-spaces/mamba, issue 110); backward counts twice as much. torch's
`FlopCounterMode` counts a multiplication and an addition of a matrix product as two, the papers
as one: their figure is half of its matrix products and convolutions plus the scans.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from vimamba_kernels.selective_scan import op as _op  # noqa: F401  registers the operators

FLOPS_PER_STATE = 9


def scan_flops(delta_shape: Sequence[int], A_shape: Sequence[int]) -> int:
    """Operations of one selective scan.

    Args:
        delta_shape: (B, K, L, D).
        A_shape: (K, D, N).
    """
    batch, paths, length, channels = delta_shape
    return FLOPS_PER_STATE * batch * paths * length * channels * A_shape[-1]


@register_flop_formula(torch.ops.vimamba.selective_scan_forward)
def _forward_flops(u: Any, delta: Any, A: Any, *_: Any, **__: Any) -> int:
    return scan_flops(delta, A)


@register_flop_formula(torch.ops.vimamba.selective_scan_backward)
def _backward_flops(grad: Any, u: Any, delta: Any, A: Any, *_: Any, **__: Any) -> int:
    return 2 * scan_flops(delta, A)


def fvcore_handles() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """Handles for `fvcore.nn.FlopCountAnalysis(model, image).set_op_handle(**handles)`.

    fvcore traces the model, so both names of the operator can occur.
    """

    def count(inputs: list[Any], outputs: list[Any]) -> int:
        return scan_flops(inputs[1].type().sizes(), inputs[2].type().sizes())

    names = ("selective_scan", "selective_scan_forward")
    return {f"vimamba::{name}": count for name in names}
