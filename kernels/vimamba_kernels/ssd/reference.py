"""The definition of Mamba-2's scan: a readable loop over the steps of every path.

Sizes: B batch, K paths, L tokens, T steps, H heads of P channels, G groups of heads, N states.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vimamba_kernels.paths import compute_dtype, to_steps, to_tokens
from vimamba_kernels.selective_scan.reference import biased_steps, finish, softplus


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: Sequence[float] | None,
    initial_state: Tensor | None,
    paths: Tensor | None,
    merge: bool,
) -> tuple[Tensor, Tensor]:
    """Mamba-2's scan (Dao and Gu 2024, arXiv:2405.21060); arguments as the op's.

    Computes in float64 if `x` is float64 and in float32 otherwise; differentiable by autograd.
    """
    steps = in_steps(x, dt, B, C, dt_bias, dt_softplus, dt_limit, paths)
    heads_per_group = A.shape[1] // steps.B.shape[3]
    B_steps, C_steps = (t.repeat_interleave(heads_per_group, dim=3) for t in (steps.B, steps.C))
    decay = torch.exp(steps.dt * A.to(steps.dt.dtype)[:, None])
    write = steps.dt.unsqueeze(-1) * steps.x

    h = first_state(initial_state, steps)
    outputs = []
    for t in range(decay.shape[2]):
        h = (
            decay[:, :, t, :, None, None] * h
            + write[:, :, t, :, :, None] * B_steps[:, :, t, :, None]
        )
        outputs.append((h * C_steps[:, :, t, :, None]).sum(-1))
    return output(torch.stack(outputs, dim=2), steps, D, x, z, paths, merge), h


class Steps(NamedTuple):
    """Inputs of the scan, in the order of the steps.

    x is (B, K, T, H, P), B and C are (B, K, T, G, N); dt, after bias, softplus and limits, is
    (B, K, T, H).
    """

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor


def in_steps(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: Sequence[float] | None,
    paths: Tensor | None,
) -> Steps:
    """Gather along the paths, in the dtype of the computation."""
    dtype = compute_dtype(x)
    x = x.unsqueeze(1).expand(-1, dt.shape[1], -1, -1, -1) if x.dim() == 4 else x
    B, C = (t.unsqueeze(3) if t.dim() == 4 else t for t in (B, C))
    size = softplus(biased_steps(dt.to(dtype), dt_bias, paths), dt_softplus)
    if dt_limit is not None:
        size = size.clamp(dt_limit[0], dt_limit[1])
    x, B, C = (to_steps(t.to(dtype), paths) for t in (x, B, C))
    return Steps(x, size, B, C)


def first_state(initial_state: Tensor | None, steps: Steps) -> Tensor:
    """The state before the first step, (B, K, H, P, N)."""
    if initial_state is not None:
        return initial_state.to(steps.x.dtype)
    batch, k, _, heads, width = steps.x.shape
    return steps.x.new_zeros((batch, k, heads, width, steps.B.shape[-1]))


def output(
    y: Tensor,
    steps: Steps,
    D: Tensor | None,
    x: Tensor,
    z: Tensor | None,
    paths: Tensor | None,
    merge: bool,
) -> Tensor:
    """Output of the states, (B, K, T, H, P), at its tokens, with skip connection and gate."""
    if D is not None:
        D = D.to(y.dtype)
        y = y + (D.unsqueeze(-1) if D.dim() == 2 else D).unsqueeze(1) * steps.x
    return finish(to_tokens(y, paths, x.shape[-3]), z, merge, x.dtype)
