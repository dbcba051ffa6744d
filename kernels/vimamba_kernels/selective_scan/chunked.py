"""The selective scan as vectorized PyTorch, for any device.

A path of T steps is split into about sqrt(T) chunks. All chunks are scanned in parallel from a zero
state; then the state is passed from chunk to chunk, and its decayed value is added to every step.
This takes about 2 sqrt(T) sequential steps instead of T. The decay from the start of a chunk is the
exponential of a cumulative sum of delta * A, which is negative, so there is no overflow and no
division.

Sizes: B batch, K paths, L tokens, T steps, D channels, G groups of channels, N states.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels.paths import compute_dtype, to_steps, to_tokens
from vimamba_kernels.selective_scan.projection import project_gradients, project_steps
from vimamba_kernels.selective_scan.reference import biased_steps, finish, per_path, softplus


def selective_scan_chunked(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Selective scan along K paths; arguments as the op's.

    Computes in float64 if `u` is float64 and in float32 otherwise; differentiable twice by
    autograd.

    Returns:
        The output, and the state after the last step.
    """
    dtype = compute_dtype(u)
    steps = project_steps(delta.to(dtype), delta_weight)
    u_steps = to_steps(per_path(u, delta).to(dtype), paths)
    dt = softplus(biased_steps(steps, delta_bias, paths), delta_softplus)
    B_steps, C_steps = (to_steps(_group_last(x).to(dtype), paths) for x in (B, C))
    log_decay = _grouped(dt, B_steps) * _grouped_parameter(A, B_steps)
    write = _grouped(dt * u_steps, B_steps) * B_steps.unsqueeze(-2)
    h = linear_recurrence(log_decay, write, _grouped_state(initial_state, B_steps))
    y = _read(h, C_steps)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u_steps
    return finish(to_tokens(y, paths, u.shape[-2]), z, merge, u.dtype), h[:, :, -1].flatten(2, 3)


def selective_scan_gradients(
    grad: Tensor,
    grad_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    initial_state: Tensor | None,
    *,
    recurrence: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> tuple[Tensor | None, ...]:
    """Gradients of all tensors except `paths`, in order, written out; None for absent tensors.

    The gradient of `initial_state` comes last. `grad` is the gradient of the output, `grad_state`
    that of the last state; `recurrence` is `linear_recurrence` or the loop that replaces it.
    """
    dtype = compute_dtype(u)
    steps = project_steps(delta.to(dtype), delta_weight)
    length = u.shape[-2]
    u_steps = to_steps(per_path(u, delta).to(dtype), paths)
    biased = biased_steps(steps, delta_bias, paths)
    dt = softplus(biased, delta_softplus)
    B_steps, C_steps = (to_steps(_group_last(x).to(dtype), paths) for x in (B, C))
    A_steps = _grouped_parameter(A, B_steps)
    log_decay = _grouped(dt, B_steps) * A_steps
    write = _grouped(dt * u_steps, B_steps) * B_steps.unsqueeze(-2)
    first = _grouped_state(initial_state, B_steps)
    h = recurrence(log_decay, write, first)

    grad = (grad.unsqueeze(1) if merge else grad).to(dtype)
    grad_z = None
    if z is not None:
        y = _read(h, C_steps)
        y = y if D is None else y + D.to(dtype)[:, None] * u_steps
        y, z = to_tokens(y, paths, length), z.unsqueeze(1).to(dtype)
        sigmoid = torch.sigmoid(z)
        grad_z = (grad * y).sum(1, keepdim=True) * sigmoid * (1 + z * (1 - sigmoid))
        grad = grad * z * sigmoid
    grad_y = to_steps(grad.expand(-1, delta.shape[1], -1, -1), paths)

    # the state's gradient follows the same recurrence backward, with the decay of the next step
    following = F.pad(log_decay[:, :, 1:], (0, 0) * (log_decay.dim() - 3) + (0, 1))
    read = _grouped(grad_y, C_steps) * C_steps.unsqueeze(-2)
    last = _grouped_state(grad_state, B_steps)
    grad_h = recurrence(following.flip(2), read.flip(2), last).flip(2)
    first = torch.zeros_like(h[:, :, 0]) if first is None else first
    before = torch.cat([first.unsqueeze(2), h[:, :, :-1]], dim=2)
    grad_log_decay = grad_h * log_decay.exp() * before

    grad_write = _read(grad_h, B_steps)
    grad_u = grad_write * dt if D is None else grad_write * dt + D.to(dtype)[:, None] * grad_y
    grad_dt = grad_write * u_steps + (grad_log_decay * A_steps).sum(-1).flatten(3)
    if delta_softplus:
        grad_dt = torch.where(biased > 20.0, grad_dt, grad_dt * torch.sigmoid(biased))
    grad_u = to_tokens(grad_u, paths, length)
    grad_steps = to_tokens(grad_dt, paths, length)
    grad_delta, grad_weight = project_gradients(grad_steps, delta, delta_weight)
    grad_B = to_tokens((grad_h * _grouped(dt * u_steps, B_steps)).sum(-2), paths, length)
    grad_C = to_tokens((h * _grouped(grad_y, C_steps)).sum(-2), paths, length)
    return (
        grad_u if u.dim() == 4 else grad_u.sum(1),
        grad_delta,
        (grad_log_decay * _grouped(dt, B_steps)).sum((0, 2)).flatten(1, 2),
        grad_B.transpose(2, 3).reshape(B.shape),
        grad_C.transpose(2, 3).reshape(C.shape),
        None if D is None else (grad_y * u_steps).sum((0, 2)),
        None if grad_z is None else grad_z.squeeze(1),
        None if delta_bias is None else grad_dt.sum((0, 2)),
        grad_weight,
        None
        if initial_state is None
        else (grad_h[:, :, 0] * log_decay[:, :, 0].exp()).flatten(2, 3),
    )


def _group_last(x: Tensor) -> Tensor:
    """(B, K, L, N) or (B, K, G, L, N) to (B, K, L, G, N)."""
    return x.unsqueeze(3) if x.dim() == 4 else x.transpose(2, 3)


def _grouped(x: Tensor, like: Tensor) -> Tensor:
    """(B, K, T, D) to (B, K, T, G, D / G, 1): a group's channels share B and C."""
    groups = like.shape[3]
    return x.unflatten(3, (groups, x.shape[3] // groups)).unsqueeze(-1)


def _grouped_parameter(A: Tensor, like: Tensor) -> Tensor:
    """(K, D, N) to (K, 1, G, D / G, N)."""
    groups = like.shape[3]
    return A.to(like.dtype).unflatten(1, (groups, A.shape[1] // groups)).unsqueeze(1)


def _grouped_state(state: Tensor | None, like: Tensor) -> Tensor | None:
    """(B, K, D, N) to (B, K, G, D / G, N)."""
    if state is None:
        return None
    groups = like.shape[3]
    return state.to(like.dtype).unflatten(2, (groups, state.shape[2] // groups))


def _read(h: Tensor, C_steps: Tensor) -> Tensor:
    """States (B, K, T, G, D / G, N) times C (B, K, T, G, N), summed over N to (B, K, T, D)."""
    if h.shape[-1] == 1:
        return (h * C_steps.unsqueeze(-2)).squeeze(-1).flatten(3)
    return (h @ C_steps.unsqueeze(-1)).squeeze(-1).flatten(3)


def linear_recurrence(log_decay: Tensor, write: Tensor, first: Tensor | None = None) -> Tensor:
    """h[t] = exp(log_decay[t]) * h[t - 1] + write[t] along dimension 2, from `first` or zero."""
    steps = write.shape[2]
    chunk = max(1, math.isqrt(steps))
    chunks = -(-steps // chunk)
    # a padded step leaves the state unchanged: decay 1, nothing added
    padding = (0, 0) * (write.dim() - 3) + (0, chunks * chunk - steps)
    log_decay = F.pad(log_decay, padding).unflatten(2, (chunks, chunk))
    write = F.pad(write, padding).unflatten(2, (chunks, chunk))

    decay = log_decay.exp()
    h = write[:, :, :, 0]
    local = [h]
    for i in range(1, chunk):
        h = decay[:, :, :, i] * h + write[:, :, :, i]
        local.append(h)
    within = torch.stack(local, dim=3)

    from_start = log_decay.cumsum(3).exp()
    carry = torch.zeros_like(within[:, :, 0, 0]) if first is None else first
    carried = [carry]
    for j in range(chunks - 1):
        carry = from_start[:, :, j, -1] * carry + within[:, :, j, -1]
        carried.append(carry)
    h = within + from_start * torch.stack(carried, dim=2).unsqueeze(3)
    return h.flatten(2, 3)[:, :, :steps]
