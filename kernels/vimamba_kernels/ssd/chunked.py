"""Mamba-2's scan as matrix products, for any device, without a loop.

The steps are split into chunks (Dao and Gu 2024, arXiv:2405.21060, section 6). Within a chunk, step
t reads what step s wrote through the product C[t] . B[s], weighted by the decay between the two.
One more product gives each chunk's contribution to the state; from these, a matrix of the decays
between chunks gives the state before each chunk.

A decay is the exponential of a sum over the steps in between, which is computed directly: the
difference of two cumulative sums would have the rounding error of the sums, which a few large steps
make large.

Sizes: B batch, K paths, T steps in M chunks of Q, G groups of R heads of P channels, N states.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels.ssd.reference import first_state, in_steps, output

# weights within chunks take T * Q numbers per head, those between chunks (T / Q)^2: for 3000 to
# 65 000 steps, images of 224 to 1024 pixels, neither dominates
CHUNK = 64


def ssd_chunked(
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
    """Mamba-2's scan along K paths; arguments as the op's.

    Computes in float64 if `x` is float64 and in float32 otherwise; differentiable any number of
    times by autograd.
    """
    steps = in_steps(x, dt, B, C, dt_bias, dt_softplus, dt_limit, paths)
    log_decay = steps.dt * A.to(steps.dt.dtype)[:, None]
    write = steps.dt.unsqueeze(-1) * steps.x
    first = first_state(initial_state, steps)
    y, last = scan_in_chunks(write, log_decay, steps.B, steps.C, first)
    return output(y, steps, D, x, z, paths, merge), last


def scan_in_chunks(
    write: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, first: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence alone, in the order of the steps.

    Args:
        write: What is added to the state, without the factor B: (B, K, T, H, P).
        log_decay: (B, K, T, H).
        B: (B, K, T, G, N).
        C: (B, K, T, G, N).
        first: The state before the first step, (B, K, H, P, N).

    Returns:
        The output, (B, K, T, H, P), and the state after the last step.
    """
    count, groups = write.shape[2], B.shape[3]
    # (B, K, G, M, R, Q), with an additional P, and (B, K, G, M, Q, N)
    log_decay = _by_group(_in_chunks(log_decay), groups)
    write = _by_group(_in_chunks(write), groups)
    B_chunks, C_chunks = (_in_chunks(t).movedim(4, 2) for t in (B, C))

    decay = _decays(log_decay)
    scores = C_chunks @ B_chunks.transpose(-1, -2)
    y = (scores.unsqueeze(4) * decay) @ write

    # the heads of a group side by side, since they share B and C: (B, K, G, M, R * P, ...)
    kept = (write * decay[..., -1, :].unsqueeze(-1)).transpose(-1, -2).flatten(4, 5)
    left = (kept @ B_chunks).unflatten(4, write.shape[4::2])
    states = _carry(left, log_decay.sum(-1), first)
    before = states[:, :, :, :-1].flatten(4, 5)
    earlier = (C_chunks @ before.transpose(-1, -2)).unflatten(5, write.shape[4::2])
    y = y + log_decay.cumsum(-1).exp().unsqueeze(-1) * earlier.transpose(4, 5)

    # (B, K, M, Q, G, R, P) to (B, K, T, H, P)
    y = y.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(2, 3)[:, :, :count]
    return y, states[:, :, :, -1].flatten(2, 3)


def _in_chunks(t: Tensor) -> Tensor:
    """(B, K, T, ...) to (B, K, M, Q, ...); a padded step leaves the state unchanged."""
    steps = t.shape[2]
    # always pad at least one step: a symbolic length cannot tell whether padding is needed
    chunks = steps // CHUNK + 1
    padding = (0, 0) * (t.dim() - 3) + (0, chunks * CHUNK - steps)
    return F.pad(t, padding).unflatten(2, (chunks, CHUNK))


def _by_group(t: Tensor, groups: int) -> Tensor:
    """(B, K, M, Q, H, ...) to (B, K, G, M, R, Q, ...)."""
    return t.unflatten(4, (groups, t.shape[4] // groups)).movedim((4, 5), (2, 4))


def _decays(log_decay: Tensor) -> Tensor:
    """Fraction of a value at step s left at step t, (..., Q) to (..., Q, Q); 0 for t < s."""
    size = log_decay.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril()
    between = log_decay.unsqueeze(-1).expand(*log_decay.shape, size)
    between = between.masked_fill(~lower.tril(-1), 0.0).cumsum(-2)
    return between.masked_fill(~lower, float("-inf")).exp()


def _carry(left: Tensor, log_decay: Tensor, first: Tensor) -> Tensor:
    """States before each chunk and after the last, (B, K, G, M + 1, R, P, N).

    Args:
        left: Contribution of each chunk to the state, (B, K, G, M, R, P, N).
        log_decay: Over each whole chunk, (B, K, G, M, R).
        first: The state before the first chunk, (B, K, H, P, N).
    """
    parts = torch.cat([first.reshape(left[:, :, :, 0].shape).unsqueeze(3), left], dim=3)
    decay = _decays(F.pad(log_decay.transpose(3, 4), (1, 0)))
    states = decay @ parts.transpose(3, 4).flatten(5, 6)
    return states.unflatten(5, parts.shape[5:]).transpose(3, 4)
