"""Mamba-3's scan as one scan like Mamba-2's, which needs no loop.

The input of a step is added to the state twice: immediately, with `trap` as its weight, and at the
next step, after a decay. From then on this equals one write with the sum of both weights (Lahoti et
al. 2026, arXiv:2603.15569, section 3.1). So Mamba-2's recurrence runs with these sums; only at its
own step is each write partly too early, which a correction term per step subtracts. The angles of
the rotation are cumulative sums, known before the recurrence starts.

The R writes and R reads of a step with ranks are R steps of the recurrence, of which only the first
decays. A read then misses the writes of later ranks, which the same term corrects.

Sizes: B batch, K paths, L tokens, T steps, H heads of P channels, R ranks, N states, S angles.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels.mamba3.checks import Inputs, Mamba3States
from vimamba_kernels.mamba3.reference import (
    TWO_PI,
    as_given,
    by_head_alone,
    first_states,
    in_steps,
    outer,
    output,
    rotate,
)
from vimamba_kernels.ssd.chunked import scan_in_chunks


def recurrence_chunked(
    x: Tensor, weight: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mamba-2's recurrence with a separate decay for every step.

        h[t] = exp(log_decay[t]) * h[t - 1] + weight[t] * x[t] B[t]^T,    h[-1] = first
        y[t] = h[t] C[t]

    Computes in float64 if `weight` is float64 and in float32 otherwise; differentiable any number
    of times by autograd.

    Args:
        x: (B, K, T, H, P).
        weight: (B, K, T, H).
        log_decay: (B, K, T, H).
        B: (B, K, T, H, N).
        C: (B, K, T, H, N).
        first: (B, K, H, P, N); None is zero.

    Returns:
        The output, (B, K, T, H, P), and the last state, (B, K, H, P, N).
    """
    x, B, C = (t.to(weight.dtype) for t in (x, B, C))
    if first is None:
        batch, k, _, heads, width = x.shape
        first = x.new_zeros((batch, k, heads, width, B.shape[-1]))
    return scan_in_chunks(weight.unsqueeze(-1) * x, log_decay, B, C, first)


def mamba3_chunked(
    inputs: Inputs, norm_eps: float, paths: Tensor | None, merge: bool
) -> tuple[Tensor, ...]:
    """Mamba-3's scan without a loop; arguments as the op's.

    Computes in float64 if `x` is float64 and in float32 otherwise.
    """
    steps = in_steps(inputs, paths)
    first = first_states(inputs)
    angle = running_angles(steps.angles, steps.dt, first.angle)
    B, C = (rotate(t, angle.unsqueeze(3)) for t in (steps.B, steps.C))

    # the weights of a write at its own step, at the next step, and of the write before the first
    trap = steps.trap.sigmoid()
    now, before = trap * steps.dt, (1 - trap) * steps.dt
    later = F.pad(before[:, :, 1:], (0, 0, 0, 1))
    state = None
    if inputs.initial_state is not None:
        state = first.state + before[:, :, 0, :, None, None] * outer(first.x, first.b)

    ranks = steps.x.shape[3]
    y, state = recurrence_chunked(
        steps.x.flatten(2, 3),
        (now + later).repeat_interleave(ranks, dim=2),
        at_first_rank(steps.log_decay, ranks),
        B.flatten(2, 3),
        C.flatten(2, 3),
        state,
    )
    skip = None if inputs.D is None else by_head_alone(inputs.D, now)
    y = y.unflatten(2, (-1, ranks)) + own_writes(steps.x, products(B, C), now, later, skip)
    y = output(y, inputs, norm_eps, paths, merge)
    last = Mamba3States(state, angle[:, :, -1], B[:, :, -1], steps.x[:, :, -1])
    return y, *as_given(last, inputs)


def running_angles(angles: Tensor, dt: Tensor, first: Tensor) -> Tensor:
    """The angles of all steps, (B, K, T, H, S), modulo 2 pi.

    Summed in float64, since a sum over thousands of steps is far larger than its terms.
    """
    steps = math.pi * angles.tanh() * dt.unsqueeze(-1)
    sums = steps.to(torch.float64).cumsum(2) + first.unsqueeze(2)
    return (sums % TWO_PI).to(dt.dtype)


def at_first_rank(log_decay: Tensor, ranks: int) -> Tensor:
    """(B, K, T, H) to (B, K, T * R, H): only the first of a step's ranks decays."""
    return F.pad(log_decay.unsqueeze(3), (0, 0, 0, ranks - 1)).flatten(2, 3)


def products(b: Tensor, c: Tensor) -> Tensor:
    """Products of a step's reads and writes, (B, K, T, H, R, R), from (B, K, T, R, H, N)."""
    return torch.einsum("bktrhn,bktshn->bkthrs", c, b)


def own_writes(
    x: Tensor, scores: Tensor, now: Tensor, later: Tensor, skip: Tensor | None
) -> Tensor:
    """The correction of a step's reads for its own writes, (B, K, T, R, H, P).

    A read of rank r should include all writes with the weight `now`. It has those up to r with the
    weight `now + later`, and no later ones. Its own x, times `skip` if given, is also missing.
    """
    ranks = x.shape[3]
    after = torch.ones((ranks, ranks), dtype=torch.bool, device=x.device).triu(1)
    weights = scores * torch.where(after, now[..., None, None], -later[..., None, None])
    if skip is not None:
        one = torch.eye(ranks, dtype=x.dtype, device=x.device)
        weights = weights + skip[..., None, None] * one
    return torch.einsum("bkthrs,bktshp->bktrhp", weights, x)
