"""The definition of the selective scan: a readable loop over the steps of every path.

Sizes: B batch, K paths, L tokens, T steps, D channels, G groups of channels, N states.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels.paths import compute_dtype, to_steps, to_tokens
from vimamba_kernels.selective_scan.projection import project_steps


def selective_scan_reference(
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
    """Selective scan (Gu and Dao 2023, arXiv:2312.00752, alg. 2); arguments as the op's.

    Computes in float64 if `u` is float64 and in float32 otherwise; differentiable by autograd.

    Returns:
        The output, and the state after the last step.
    """
    dtype = compute_dtype(u)
    steps = project_steps(delta.to(dtype), delta_weight)
    length, channels = u.shape[-2:]
    u_steps = to_steps(per_path(u, delta).to(dtype), paths)
    dt = softplus(biased_steps(steps, delta_bias, paths), delta_softplus)
    B_steps = to_steps(_per_channel(B, channels).to(dtype), paths)
    C_steps = to_steps(_per_channel(C, channels).to(dtype), paths)
    A = A.to(dtype)

    h = u_steps.new_zeros((dt.shape[0], *A.shape))
    h = h if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(dt.shape[2]):
        dt_t, u_t = dt[:, :, t, :, None], u_steps[:, :, t, :, None]
        h = torch.exp(dt_t * A) * h + dt_t * B_steps[:, :, t] * u_t
        outputs.append((C_steps[:, :, t] * h).sum(-1))
    y = torch.stack(outputs, dim=2)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u_steps
    return finish(to_tokens(y, paths, length), z, merge, u.dtype), h


def linear_recurrence_loop(log_decay: Tensor, write: Tensor, first: Tensor | None = None) -> Tensor:
    """h[t] = exp(log_decay[t]) * h[t - 1] + write[t] along dimension 2, from `first` or zero."""
    h = torch.zeros_like(write[:, :, 0]) if first is None else first
    states = []
    for t in range(write.shape[2]):
        h = log_decay[:, :, t].exp() * h + write[:, :, t]
        states.append(h)
    return torch.stack(states, dim=2)


def _per_channel(x: Tensor, channels: int) -> Tensor:
    """(B, K, L, N) or (B, K, G, L, N) to (B, K, L, D, N)."""
    x = x.unsqueeze(2) if x.dim() == 4 else x
    return x.repeat_interleave(channels // x.shape[2], dim=2).transpose(2, 3)


def per_path(u: Tensor, delta: Tensor) -> Tensor:
    """(B, L, D), shared by the paths, or (B, K, L, D) to (B, K, L, D)."""
    return u if u.dim() == 4 else u.unsqueeze(1).expand(-1, delta.shape[1], -1, -1)


def biased_steps(delta: Tensor, delta_bias: Tensor | None, paths: Tensor | None) -> Tensor:
    """(B, K, T, D): delta in the order of the steps, plus its bias."""
    steps = to_steps(delta, paths)
    return steps if delta_bias is None else steps + delta_bias.to(steps.dtype)[:, None]


def softplus(x: Tensor, enabled: bool) -> Tensor:
    """log(1 + exp(x)), linear above 20, or `x` itself."""
    return F.softplus(x, threshold=20.0) if enabled else x


def finish(y: Tensor, z: Tensor | None, merge: bool, dtype: torch.dtype) -> Tensor:
    """Sum of `y` (B, K, L, D) over the paths if `merge`, times silu(z), in `dtype`."""
    y = y.sum(1) if merge else y
    if z is not None:
        gate = F.silu(z.to(y.dtype))
        y = y * (gate if merge else gate.unsqueeze(1))
    return y.to(dtype).contiguous()
