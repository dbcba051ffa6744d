"""Mamba-2's scan on a CPU: the selective scan with a head's decay in all its channels.

Measured for the shapes of VMamba on two cores, the compiled scan over all N states takes a tenth
of the time of matrix products in PyTorch, although it computes an exponential per state.
"""

import torch
from torch import Tensor

from vimamba_kernels.registration import nothing


def ssd_cpu(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
    paths: Tensor | None,
    merge: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and the state after the last step or empty; arguments as the op's."""
    heads, width = x.shape[-2:]
    states = B.shape[-1]

    def per_channel(t: Tensor) -> Tensor:
        return t.unsqueeze(-1).expand(*t.shape, width).flatten(-2)

    if D is not None:
        D = per_channel(D) if D.dim() == 2 else D.flatten(1)
    arguments = (
        x.flatten(-2),
        per_channel(dt),
        per_channel(A).unsqueeze(-1).expand(-1, -1, states),
        B if B.dim() == 4 else B.transpose(2, 3),
        C if C.dim() == 4 else C.transpose(2, 3),
        D,
        None if z is None else z.flatten(-2),
        None if dt_bias is None else per_channel(dt_bias),
        None,
        dt_softplus,
        paths,
        merge,
        "cpu",
    )
    if initial_state is None and not return_state:
        y = torch.ops.vimamba.selective_scan(*arguments)
        return y.unflatten(-1, (heads, width)), nothing(y, torch.float32)
    first = None if initial_state is None else initial_state.flatten(2, 3)
    y, last = torch.ops.vimamba.selective_scan_with_state(*arguments, first)
    last = last.unflatten(2, (heads, width)) if return_state else nothing(last)
    return y.unflatten(-1, (heads, width)), last
