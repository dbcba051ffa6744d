"""The definition of Mamba-3's scan: a readable loop over the steps of every path.

Sizes: B batch, K paths, L tokens, T steps, H heads of P channels, R ranks, N states, S angles.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels.mamba3.checks import Inputs, Mamba3States
from vimamba_kernels.paths import compute_dtype, to_steps, to_tokens
from vimamba_kernels.selective_scan.reference import finish

TWO_PI = 2 * math.pi


def mamba3_reference(
    inputs: Inputs, norm_eps: float, paths: Tensor | None, merge: bool
) -> tuple[Tensor, ...]:
    """Mamba-3's scan (Lahoti et al. 2026, arXiv:2603.15569); arguments as the op's.

    Computes in float64 if `x` is float64 and in float32 otherwise; differentiable by autograd.
    """
    steps = in_steps(inputs, paths)
    state, angle, b_before, x_before = first_states(inputs)
    outputs = []
    for t in range(steps.dt.shape[2]):
        dt, trap = steps.dt[:, :, t], steps.trap[:, :, t].sigmoid()
        decay = steps.log_decay[:, :, t].exp()
        angle = (angle + math.pi * steps.angles[:, :, t].tanh() * dt.unsqueeze(-1)) % TWO_PI
        b, c = (rotate(v[:, :, t], angle.unsqueeze(2)) for v in (steps.B, steps.C))
        x = steps.x[:, :, t]
        state = (
            _wide(decay) * state
            + _wide((1 - trap) * dt * decay) * outer(x_before, b_before)
            + _wide(trap * dt) * outer(x, b)
        )
        outputs.append(torch.einsum("bkhpn,bkrhn->bkrhp", state, c))
        b_before, x_before = b, x
    y = torch.stack(outputs, dim=2)
    if inputs.D is not None:
        y = y + by_head_alone(inputs.D, y)[:, :, None, :, None] * steps.x
    y = output(y, inputs, norm_eps, paths, merge)
    return y, *as_given(Mamba3States(state, angle, b_before, x_before), inputs)


class Steps(NamedTuple):
    """Inputs of the scan, in the order of the steps and in the dtype of the computation.

    dt, log_decay and trap are (B, K, T, H), angles is (B, K, T, H or 1, S). x is
    (B, K, T, R, H, P), times `mimo_x` if given; B and C are (B, K, T, R, H, N), biased, before the
    rotation. Without ranks, R is 1.
    """

    x: Tensor
    dt: Tensor
    log_decay: Tensor
    trap: Tensor
    B: Tensor
    C: Tensor
    angles: Tensor


def in_steps(inputs: Inputs, paths: Tensor | None) -> Steps:
    """Gather along the paths; a zero token is one whose inputs are all zero."""
    dtype = compute_dtype(inputs.x)

    def gather(t: Tensor) -> Tensor:
        return to_steps(t, paths).to(dtype)

    heads = inputs.dt.shape[3]
    return Steps(
        x=by_input(gather(per_path(inputs.x, inputs.dt)), inputs),
        dt=gather(inputs.dt),
        log_decay=gather(inputs.log_decay),
        trap=gather(inputs.trap),
        B=by_head(gather(inputs.B), inputs.B_bias, heads),
        C=by_head(gather(inputs.C), inputs.C_bias, heads),
        angles=gather(inputs.angles),
    )


def per_path(x: Tensor, dt: Tensor) -> Tensor:
    """(B, L, H, P), shared by the paths, or (B, K, L, H, P) to (B, K, L, H, P)."""
    return x if x.dim() == 5 else x.unsqueeze(1).expand(-1, dt.shape[1], -1, -1, -1)


def by_input(x: Tensor, inputs: Inputs) -> Tensor:
    """(B, K, T, H, P) to the input of each rank, (B, K, T, R, H, P)."""
    x = x.unsqueeze(3)
    return x if inputs.mimo_x is None else x * by_rank(inputs.mimo_x, x)


def by_head(t: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """B or C, with or without groups and ranks, to (B, K, T, R, H, N), biased."""
    t = t.unsqueeze(3) if t.dim() == 4 else t
    t = t.unsqueeze(3) if t.dim() == 5 else t
    t = t.repeat_interleave(heads // t.shape[4], dim=4)
    return t if bias is None else t + by_rank(bias, t)


def by_rank(t: Tensor, like: Tensor) -> Tensor:
    """A parameter (K, H, R, C), or (K, H, C) without ranks, to the layout (K, 1, R, H, C)."""
    t = t.unsqueeze(2) if t.dim() == 3 else t
    return t.transpose(1, 2).unsqueeze(1).to(like.dtype)


def first_states(inputs: Inputs) -> Mamba3States:
    """The states before the first step, zeros unless given; b and x with ranks before heads."""
    x, B = inputs.x, inputs.B
    dtype = compute_dtype(x)
    given = inputs[-4:]
    if any(t is None for t in given):
        batch, k, _, heads = inputs.dt.shape
        ranks = B.shape[3] if B.dim() == 6 else 1
        width, states = x.shape[-1], B.shape[-1]
        return Mamba3States(
            x.new_zeros((batch, k, heads, width, states), dtype=dtype),
            x.new_zeros((batch, k, heads, inputs.angles.shape[-1]), dtype=dtype),
            x.new_zeros((batch, k, ranks, heads, states), dtype=dtype),
            x.new_zeros((batch, k, ranks, heads, width), dtype=dtype),
        )
    state, angle, b_before, x_before = (t.to(dtype) for t in given if t is not None)
    return Mamba3States(state, angle, *(_ranks_first(t) for t in (b_before, x_before)))


def _ranks_first(t: Tensor) -> Tensor:
    """(B, K, H, R, C), or (B, K, H, C) without ranks, to (B, K, R, H, C)."""
    return t.transpose(2, 3) if t.dim() == 5 else t.unsqueeze(2)


def as_given(states: Mamba3States, inputs: Inputs) -> Mamba3States:
    """The states in the layout of the operator: ranks after heads, or no ranks."""
    B, x = (
        t.transpose(2, 3) if inputs.B.dim() == 6 else t.squeeze(2) for t in (states.b, states.x)
    )
    return Mamba3States(states.state, states.angle, B, x)


def rotate(t: Tensor, angle: Tensor) -> Tensor:
    """Rotate pairs (2i, 2i + 1) of (..., N) by angle i of (..., S); the rest is unchanged."""
    rotated = 2 * angle.shape[-1]
    first, second = t[..., :rotated:2], t[..., 1:rotated:2]
    cos, sin = angle.cos(), angle.sin()
    pairs = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return torch.cat([pairs.flatten(-2), t[..., rotated:]], dim=-1)


def outer(x: Tensor, B: Tensor) -> Tensor:
    """What a step adds to the state, (B, K, H, P, N), summed over its ranks."""
    return torch.einsum("bkrhp,bkrhn->bkhpn", x, B)


def _wide(t: Tensor) -> Tensor:
    """(B, K, H) as a factor of states."""
    return t[..., None, None]


def by_head_alone(D: Tensor, like: Tensor) -> Tensor:
    """(K, H) to (K, 1, H), in the dtype of `like`."""
    return D.unsqueeze(1).to(like.dtype)


def output(y: Tensor, inputs: Inputs, norm_eps: float, paths: Tensor | None, merge: bool) -> Tensor:
    """Reads of states, (B, K, T, R, H, P), to outputs at tokens: norm, gate, sum of ranks."""
    x, z = inputs.x, inputs.z
    if inputs.norm_weight is None and inputs.mimo_o is None:
        # the gate is the same for all paths, which are summed first
        return finish(to_tokens(y.squeeze(3), paths, x.shape[-3]), z, merge, x.dtype)
    if inputs.norm_weight is not None:
        scale = torch.rsqrt(y.square().mean(-1, keepdim=True) + norm_eps)
        y = y * scale * by_rank(inputs.norm_weight, y)
    if z is not None:
        gate = to_steps(per_path(z, inputs.dt), paths).to(y.dtype).unsqueeze(3)
        y = y * F.silu(gate if inputs.mimo_z is None else gate * by_rank(inputs.mimo_z, y))
    if inputs.mimo_o is not None:
        y = y * by_rank(inputs.mimo_o, y)
    return finish(to_tokens(y.sum(3), paths, x.shape[-3]), None, merge, x.dtype)
