"""The operators as modules: the parameters of K scans, their initialization, and the call.

    SelectiveScan       Mamba's (arXiv:2312.00752): a decay for every channel and state
    StateSpaceDuality   Mamba-2's (arXiv:2405.21060): one for every head of channels

A mixer projects its tokens to step sizes, B and C in its own way and passes them to one of these.

Sizes: N batch, L tokens, K paths of T steps, D channels, S states, R rank of the step size.
"""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

import vimamba_kernels  # noqa: F401  registers the operators
from vimamba.layers.ssm import (
    StepProjection,
    init_state_decay_,
    init_step_bias_,
    init_step_projection_,
)
from vimamba_kernels.selective_scan.op import scan_tokens


def check_sizes(**sizes: object) -> None:
    """Fail on a size that is not a positive integer.

    Raises:
        ValueError: Names the size.
    """
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}={size!r} must be an integer, at least 1")


class SelectiveScan(nn.Module):
    """K selective scans over the same tokens: step projections, decays, skips, and the operator.

    Args:
        dim: D.
        num_paths: K.
        d_state: S.
        dt_rank: R.
        bias_scale: Factor of the step-size bias, 2 for networks whose code adds it twice.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_paths: int,
        d_state: int,
        dt_rank: int,
        bias_scale: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, num_paths=num_paths, d_state=d_state, dt_rank=dt_rank)
        dd = {"device": device, "dtype": dtype}
        self.num_paths, self.d_state, self.dt_rank = num_paths, d_state, dt_rank
        self.bias_scale = bias_scale
        self.dt_proj = StepProjection(
            nn.Linear(dt_rank, dim, bias=False, **dd) for _ in range(num_paths)
        )
        self.dt_bias = nn.Parameter(torch.empty(num_paths, dim, **dd))
        self.A_log = nn.Parameter(torch.empty(num_paths, dim, d_state, **dd))
        self.D = nn.Parameter(torch.empty(num_paths, dim, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as in Mamba."""
        for projection in self.dt_proj:
            init_step_projection_(projection)  # type: ignore[arg-type]
        init_step_bias_(self.dt_bias)
        init_state_decay_(self.A_log)
        nn.init.ones_(self.D)

    def forward(
        self,
        u: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        paths: Tensor | None,
        gate: Tensor | None = None,
        merge: bool = True,
        skip: bool = True,
    ) -> Tensor:
        """Scan, and sum the paths' results if `merge`.

        Args:
            u: (N, L, D), or (N, K, L, D) with separate tokens for every path.
            dt: (N, K, L, R).
            B: (N, K, L, S).
            C: (N, K, L, S).
            paths: (K, T) or (N, K, T); None visits all tokens in order.
            gate: (N, L, D); the result is multiplied by its SiLU.
            merge: Return the sum over the paths.
            skip: Add the skip term D * u.

        Returns:
            (N, L, D), or (N, K, L, D) without `merge`.
        """
        delta, delta_weight = self.dt_proj(dt)
        D: Tensor | None = self.D if skip else None
        dt_bias = self.dt_bias if self.bias_scale == 1.0 else self.dt_bias * self.bias_scale
        A = -torch.exp(self.A_log)
        return scan_tokens(u, delta, A, B, C, D, gate, dt_bias, delta_weight, True, paths, merge)

    def mix(self, u: Tensor, projected: Tensor, paths: Tensor | None, merge: bool = True) -> Tensor:
        """Scan with the joint projection for all paths.

        Args:
            u: (N, L, D).
            projected: (N, L, K * (R + 2 S)): step size, B and C of every path.
            paths: As in `forward`.
            merge: As in `forward`.

        Returns:
            As `forward`.
        """
        projected = projected.unflatten(-1, (self.num_paths, self.dt_rank + 2 * self.d_state))
        sizes = [self.dt_rank, self.d_state, self.d_state]
        dt, B, C = projected.transpose(1, 2).split(sizes, dim=-1)
        return self(u, dt, B, C, paths, None, merge)

    def states(self, u: Tensor, projected: Tensor, paths: Tensor | None) -> tuple[Tensor, Tensor]:
        """States of scans with one state per channel, before they are read by C.

        Args:
            u: As in `mix`.
            projected: As in `mix`.
            paths: As in `mix`.

        Returns:
            The states (N, K, L, D), and C, (N, K, L, 1), by which to multiply them.
        """
        projected = projected.unflatten(-1, (self.num_paths, self.dt_rank + 2))
        dt, B, C = projected.transpose(1, 2).split([self.dt_rank, 1, 1], dim=-1)
        # with C = 1 and no skip, the result of a scan is its state
        return self(u, dt, B, torch.ones_like(B), paths, None, False, False), C


class StateSpaceDuality(nn.Module):
    """K scans with one decay for every head of channels: step biases, decays, skips, the operator.

    Args:
        heads: H.
        head_dim: P; H * P = D.
        num_paths: K.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self, heads: int, head_dim: int, *, num_paths: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        check_sizes(heads=heads, head_dim=head_dim, num_paths=num_paths)
        dd = {"device": device, "dtype": dtype}
        self.dt_bias = nn.Parameter(torch.empty(num_paths, heads, **dd))
        self.A_log = nn.Parameter(torch.empty(num_paths, heads, **dd))
        self.D = nn.Parameter(torch.empty(num_paths, heads, head_dim, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as in VMamba's second generation."""
        nn.init.uniform_(self.dt_bias, 0.0, 0.1)
        nn.init.zeros_(self.A_log)
        nn.init.ones_(self.D)

    def forward(
        self,
        u: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        paths: Tensor | None,
        merge: bool = True,
    ) -> Tensor:
        """Scan, and sum the paths' results if `merge`.

        Args:
            u: (N, L, H, P), or (N, K, L, H, P) with separate tokens for every path.
            dt: (N, K, L, H).
            B: (N, K, L, S).
            C: (N, K, L, S).
            paths: (K, T) or (N, K, T); None visits all tokens in order.
            merge: Return the sum over the paths.

        Returns:
            (N, L, H, P), or (N, K, L, H, P) without `merge`.
        """
        return torch.ops.vimamba.ssd(
            u,
            dt,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            paths=paths,
            merge=merge,
            return_state=False,
            backend="auto",
        )[0]
