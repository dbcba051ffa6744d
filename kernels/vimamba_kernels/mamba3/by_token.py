"""Mamba-3's scan around Triton kernels, which read and write tokens in place.

The method is that of chunked.py, but no tensor of the size of x, B or C is reordered by step. The
correction of a step for its own writes, a few numbers per head, is added to the skip connection.

Rotated B and C pass through memory once. For heads of 64 channels with 128 states, 64 of them
rotated, one group and 4 paths in bfloat16, counting inputs and outputs of every operator, a head's
step moves 1600 bytes around the recurrence and 600 in it; backward 2250 and 1150, and 730 are saved
for the backward pass. With 4 ranks it is 23 000 and 3100, mostly for the gates of the ranks in
PyTorch. A kernel for everything would save most of the bytes around the recurrence; chunked.py
around the same recurrence took 29 000 without ranks, 50 000 backward, and saved 3800.

Sizes: B batch, K paths, L tokens, T steps, H heads of P channels, R ranks, N states, S angles.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels.mamba3.checks import Inputs, Mamba3States
from vimamba_kernels.mamba3.chunked import (
    at_first_rank,
    own_writes,
    products,
    recurrence_chunked,
    running_angles,
)
from vimamba_kernels.mamba3.reference import (
    as_given,
    by_head,
    by_head_alone,
    by_input,
    first_states,
    outer,
    output,
    per_path,
    rotate,
)
from vimamba_kernels.paths import compute_dtype, to_steps, to_tokens


def mamba3_by_token(
    inputs: Inputs, norm_eps: float, paths: Tensor | None, merge: bool, return_states: bool
) -> tuple[Tensor, ...]:
    """Mamba-3's scan by Triton kernels; arguments as the op's.

    Computes in float32; matrix products have factors in the dtype of `x`. The states are empty
    unless `return_states`. A NaN at a token that no path visits reaches the output there.
    """
    x, initial_angle = inputs.x, inputs.initial_angle
    dt, log_decay, trap = (t.float() for t in (inputs.dt, inputs.log_decay, inputs.trap))
    b, c, scores, angle = torch.ops.vimamba.mamba3_rotate(
        inputs.B, inputs.C, inputs.B_bias, inputs.C_bias, inputs.angles, dt, initial_angle, paths
    )
    trap = trap.sigmoid()
    now, before = trap * dt, (1 - trap) * dt
    in_order = to_steps(before, paths)
    later = to_tokens(F.pad(in_order[:, :, 1:], (0, 0, 0, 1)), paths, dt.shape[2])
    # 1 for each token that a path visits
    visits = to_tokens(torch.ones_like(in_order[..., :1]), paths, dt.shape[2])
    state = None
    if inputs.initial_state is not None:
        first = first_states(inputs)
        state = first.state + in_order[:, :, 0, :, None, None] * outer(first.x, first.b)

    ranks = b.shape[3]
    ranked = inputs.mimo_x is not None
    # paths with a norm or separate gates cannot be summed before them
    early = merge and not ranked and inputs.norm_weight is None
    written = by_input(per_path(x, dt), inputs).to(x.dtype)
    y, state = torch.ops.vimamba.mamba3_forward(
        written.flatten(2, 3) if ranked else x,
        (now + later).repeat_interleave(ranks, dim=2),
        at_first_rank(log_decay, ranks),
        b.flatten(2, 3),
        c.flatten(2, 3),
        state,
        _by_rank(paths, ranks),
        early,
        return_states,
    )
    skip = None if inputs.D is None else by_head_alone(inputs.D, visits) * visits
    if early:
        own = -later * scores[..., 0, 0]
        skip = own if skip is None else own + skip
        own = skip.sum(1).unsqueeze(-1) * x if x.dim() == 4 else (skip.unsqueeze(-1) * x).sum(1)
        y = (y + own)[:, None, :, None]
    else:
        y = y.float().unflatten(2, (-1, ranks))
        y = y + own_writes(written.float(), scores, now * visits, later, skip)
    y = output(y, inputs, norm_eps, None, merge)
    if not return_states:
        return y, state, state, state, state
    b, x = _at_last_step(inputs, angle, paths)
    return y, *as_given(Mamba3States(state, angle, b, x), inputs)


def _by_rank(paths: Tensor | None, ranks: int) -> Tensor | None:
    """The table of a path that visits the ranks of a token one after another."""
    if paths is None or ranks == 1:
        return paths
    rank = torch.arange(ranks, dtype=paths.dtype, device=paths.device)
    by_rank = paths.unsqueeze(-1) * ranks + rank
    return torch.where(paths.unsqueeze(-1) < 0, -1, by_rank).flatten(-2)


def _at_last_step(inputs: Inputs, angle: Tensor, paths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The parts of the last step that continue a scan, (B, K, R, H, N) and (B, K, R, H, P)."""
    B, x = inputs.B, per_path(inputs.x, inputs.dt)
    end = None if paths is None else paths[..., -1:]
    B, x = (to_steps(t[:, :, -1:] if paths is None else t, end).float() for t in (B, x))
    b = rotate(by_head(B, inputs.B_bias, angle.shape[2])[:, :, 0], angle.unsqueeze(2))
    return b, by_input(x, inputs)[:, :, 0]


def rotate_by_token(
    B: Tensor,
    C: Tensor,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor,
    dt: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """B and C, biased and rotated by the cumulative sums of the angles along the paths.

    Args:
        B: As the op's, like the arguments not named here.
        C: Likewise.
        B_bias: Likewise.
        C_bias: Likewise.
        angles: Likewise.
        dt: (B, K, L, H), in float32.
        first: The angle before the first step, (B, K, H, S).
        paths: Likewise.

    Returns:
        Rotated B and C, (B, K, L, R, H, N), in their dtype; the products of each read of a token
        with each of its writes, (B, K, L, H, R, R); and the last angle, (B, K, H, S).
    """
    if first is None:
        batch, k, _, heads = dt.shape
        first = dt.new_zeros((batch, k, heads, angles.shape[-1]))
    dtype = compute_dtype(B)
    steps = running_angles(to_steps(angles.to(dtype), paths), to_steps(dt, paths), first)
    angle = to_tokens(steps, paths, dt.shape[2]).unsqueeze(3)
    b, c = (
        rotate(by_head(t.to(dtype), bias, dt.shape[3]), angle)
        for t, bias in ((B, B_bias), (C, C_bias))
    )
    return b.to(B.dtype), c.to(C.dtype), products(b, c), steps[:, :, -1]


def recurrence_by_token(
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
    merge: bool,
) -> tuple[Tensor, Tensor]:
    """`recurrence_chunked` along paths, with outputs by token, summed if `merge`."""
    length = weight.shape[2]
    tensors = (per_path(x, weight), weight, log_decay, B, C)
    x, weight, log_decay, B, C = (to_steps(t, paths) for t in tensors)
    y, last = recurrence_chunked(x, weight, log_decay, B, C, first)
    y = to_tokens(y, paths, length)
    return y.sum(1) if merge else y, last
