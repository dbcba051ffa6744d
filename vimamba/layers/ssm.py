"""Parameters that every selective-scan mixer has, and how they start.

Sizes: K paths, D inner channels, N states, R rank of the step size.
"""

import math

import torch
from torch import Tensor, nn

import vimamba_kernels  # noqa: F401  registers torch.ops.vimamba.selective_scan


def init_state_decay_(A_log: Tensor) -> None:
    """ln(1..N) in every channel: the real part of S4D (Gu et al. 2022, arXiv:2206.11893)."""
    states = torch.arange(1, A_log.shape[-1] + 1, device=A_log.device, dtype=torch.float32)
    with torch.no_grad():
        A_log.copy_(states.log().expand(A_log.shape))


def init_step_bias_(
    dt_bias: Tensor, *, dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4
) -> None:
    """Make softplus(dt_bias) log-uniform in [dt_min, dt_max] (Mamba, arXiv:2312.00752, 3.6)."""
    with torch.no_grad():
        log_step = torch.empty_like(dt_bias).uniform_(math.log(dt_min), math.log(dt_max))
        step = log_step.exp().clamp(min=floor)
        dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus


def init_step_projection_(projection: nn.Linear) -> None:
    """Uniform in +-R^-0.5, which keeps the variance of the step size."""
    bound = projection.in_features**-0.5
    nn.init.uniform_(projection.weight, -bound, bound)
