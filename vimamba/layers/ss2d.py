"""Mixers of image tokens: a convolution, a state space along a scan order's paths, a norm.

The tokens stay where they are: the scan walks the path table, so an order costs no copy. One
projection makes the step sizes, B and C of all paths at once, since they read the same tokens.

    SS2D   the scan of Mamba: a decay for every channel and state (VMamba, arXiv:2401.10166)
    SSD2D  that of Mamba-2: one for every head of channels, which affords many more states

Sizes: N batch, H and W grid, or *grid of 1 to 3 axes, L tokens on it, C channels, D = expand * C,
K paths, S states.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.layers.ssm import (
    StepProjection,
    init_state_decay_,
    init_step_bias_,
    init_step_projection_,
)
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.scan_orders import num_paths

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ScanMixer(nn.Module):
    """What these mixers have in common: all but the scan.

    Args:
        dim: C.
        inner: D.
        act: Activation after the convolution, and of the gate.
        scan_order: One of `vimamba.list_scan_orders(dims)`, with parameters if it has any, or a
            sum.
        gated: Multiply the normed output by an activated gate.
        conv_bias: Give the depthwise convolution a bias.
        dims: Axes of the grid, 1 to 3.
        dd: Device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        inner: int,
        act: nn.Module,
        *,
        scan_order: str,
        gated: bool,
        conv_bias: bool,
        dims: int,
        dd: dict[str, Any],
    ) -> None:
        super().__init__()
        if dims not in _CONV:
            raise ValueError(f"dims={dims} of a grid must be 1, 2 or 3")
        self.scan_order = scan_order
        self.num_paths = num_paths(scan_order, dims)
        self.gated = gated
        self.in_proj = nn.Linear(dim, 2 * inner if gated else inner, bias=False, **dd)
        self.conv = _CONV[dims](inner, inner, 3, padding=1, groups=inner, bias=conv_bias, **dd)
        self.act = act
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor, paths: Tensor | None = None) -> Tensor:
        """(N, H, W, C), or (N, *grid, C), to the same shape.

        Args:
            x: Tokens on a grid.
            paths: (K, T), or (N, K, T) with paths of its own for every image, walked instead of
                the scan order's; entries as `vimamba_kernels.selective_scan` takes them.
        """
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        grid = x.shape[1:-1]
        x = self.in_proj(x)
        gate = x
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
        x = self.act(self.conv(x.movedim(-1, 1))).movedim(1, -1)
        own: Tensor = torch.ops.vimamba.scan_paths(x, self.scan_order) if paths is None else paths
        y = self.out_norm(self.scan(x.flatten(1, -2), own))
        y = y.unflatten(1, grid)
        if self.gated:
            y = y * self.act(gate)
        return self.out_proj(y)

    def scan(self, u: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, D) along paths (K, T) or (N, K, T), summed over them: (N, L, D)."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Start the parameters of the scan; the other layers start themselves."""
        raise NotImplementedError


class SS2D(ScanMixer):
    """Mix image tokens with one selective scan per path and add the results up.

    Args:
        dim: C.
        scan_order: One of `vimamba.list_scan_orders(dims)`, with parameters if it has any, or a
            sum.
        d_state: S.
        expand: D / C.
        dt_rank: Rank of the step-size projection; C / 16 rounded up if None.
        gated: Multiply the normed output by a SiLU gate.
        conv_bias: Give the depthwise convolution a bias.
        dims: Axes of the grid, 1 to 3.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan_order: str = "cross",
        d_state: int = 1,
        expand: float = 1.0,
        dt_rank: int | None = None,
        gated: bool = False,
        conv_bias: bool = False,
        dims: int = 2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        inner = int(expand * dim)
        shell = {"scan_order": scan_order, "gated": gated, "conv_bias": conv_bias, "dims": dims}
        super().__init__(dim, inner, nn.SiLU(), dd=dd, **shell)
        self.d_state = d_state
        self.dt_rank = dt_rank or math.ceil(dim / 16)

        rows = self.num_paths * (self.dt_rank + 2 * d_state)
        self.x_proj = nn.Linear(inner, rows, bias=False, **dd)
        self.dt_proj = StepProjection(
            nn.Linear(self.dt_rank, inner, bias=False, **dd) for _ in range(self.num_paths)
        )
        self.dt_bias = nn.Parameter(torch.empty(self.num_paths, inner, **dd))
        self.A_log = nn.Parameter(torch.empty(self.num_paths, inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(self.num_paths, inner, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the parameters of the scan; the other layers start themselves."""
        self.x_proj.reset_parameters()
        for projection in self.dt_proj:
            init_step_projection_(projection)  # type: ignore[arg-type]
        init_step_bias_(self.dt_bias)
        init_state_decay_(self.A_log)
        nn.init.ones_(self.D)

    def scan(self, u: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, D) along paths (K, T) or (N, K, T), summed over them: (N, L, D)."""
        projected = self.x_proj(u).unflatten(-1, (self.num_paths, self.dt_rank + 2 * self.d_state))
        projected = projected.transpose(1, 2)
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta, delta_weight = self.dt_proj(dt)
        return torch.ops.vimamba.selective_scan(
            u,
            delta,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            None,
            self.dt_bias,
            delta_weight,
            True,
            paths,
            True,
            "auto",
        )


class SSD2D(ScanMixer):
    """Mix image tokens with one scan of scalar decays per path and add the results up.

    The D channels stand in R heads of P; the step sizes, one per head, need no projection of their
    own.

    Args:
        dim: C.
        scan_order: One of `vimamba.list_scan_orders(dims)`, with parameters if it has any, or a
            sum.
        d_state: S.
        expand: D / C.
        heads: R; C / 16 rounded up if None.
        gated: Multiply the normed output by a GELU gate.
        conv_bias: Give the depthwise convolution a bias.
        dims: Axes of the grid, 1 to 3.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan_order: str = "cross",
        d_state: int = 64,
        expand: float = 1.0,
        heads: int | None = None,
        gated: bool = False,
        conv_bias: bool = False,
        dims: int = 2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        inner = int(expand * dim)
        heads = heads or math.ceil(dim / 16)
        if inner % heads:
            raise ValueError(f"heads={heads} must divide the {inner} inner channels")
        shell = {"scan_order": scan_order, "gated": gated, "conv_bias": conv_bias, "dims": dims}
        super().__init__(dim, inner, nn.GELU(), dd=dd, **shell)
        self.d_state = d_state
        self.heads = heads

        rows = self.num_paths * (heads + 2 * d_state)
        self.x_proj = nn.Linear(inner, rows, bias=False, **dd)
        self.dt_bias = nn.Parameter(torch.empty(self.num_paths, heads, **dd))
        self.A_log = nn.Parameter(torch.empty(self.num_paths, heads, **dd))
        self.D = nn.Parameter(torch.empty(self.num_paths, heads, inner // heads, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the parameters of the scan; the other layers start themselves."""
        self.x_proj.reset_parameters()
        nn.init.uniform_(self.dt_bias, 0.0, 0.1)
        nn.init.zeros_(self.A_log)
        nn.init.ones_(self.D)

    def scan(self, u: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, D) along paths (K, T) or (N, K, T), summed over them: (N, L, D)."""
        projected = self.x_proj(u).unflatten(-1, (self.num_paths, self.heads + 2 * self.d_state))
        dt, B, C = projected.transpose(1, 2).split([self.heads, self.d_state, self.d_state], dim=-1)
        y, _ = torch.ops.vimamba.ssd(
            u.unflatten(-1, (self.heads, -1)),
            dt,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            None,
            self.dt_bias,
            True,
            None,
            None,
            paths,
            True,
            False,
            "auto",
        )
        return y.flatten(-2)
