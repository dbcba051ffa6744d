"""SSD2D: Mamba-2's state space over an image, along any scan order (VMamba, arXiv:2401.10166).

What `SS2D` does with a decay for every channel and state, this does with one for every head of
P channels, so the step sizes need no projection of their own and B and C can have many states.

Sizes: N batch, H and W grid, L = H * W tokens, C channels, D = expand * C = R * P channels in R
heads, K paths, S states.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

import vimamba_kernels  # noqa: F401  registers torch.ops.vimamba.ssd
from vimamba.scan_orders import num_paths


class SSD2D(nn.Module):
    """Mix image tokens with one scan of scalar decays per path and add the results up.

    Args:
        dim: C.
        scan_order: Name from `vimamba.list_scan_orders()`, with parameters if it has any.
        d_state: S.
        expand: D / C.
        heads: R; C / 16 rounded up if None.
        gated: Multiply the normed output by a GELU gate.
        conv_bias: Give the depthwise convolution a bias.
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = int(expand * dim)
        self.scan_order = scan_order
        self.num_paths = num_paths(scan_order)
        self.d_state = d_state
        self.heads = heads or math.ceil(dim / 16)
        if inner % self.heads:
            raise ValueError(f"heads={self.heads} must divide the {inner} inner channels")
        self.gated = gated

        self.in_proj = nn.Linear(dim, 2 * inner if gated else inner, bias=False, **dd)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias, **dd)
        self.act = nn.GELU()
        rows = self.num_paths * (self.heads + 2 * d_state)
        self.x_proj = nn.Linear(inner, rows, bias=False, **dd)
        self.dt_bias = nn.Parameter(torch.empty(self.num_paths, self.heads, **dd))
        self.A_log = nn.Parameter(torch.empty(self.num_paths, self.heads, **dd))
        self.D = nn.Parameter(torch.empty(self.num_paths, self.heads, inner // self.heads, **dd))
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the parameters of the scan; the other layers start themselves."""
        self.x_proj.reset_parameters()
        nn.init.uniform_(self.dt_bias, 0.0, 0.1)
        nn.init.zeros_(self.A_log)
        nn.init.ones_(self.D)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        height, width = x.shape[1], x.shape[2]
        x = self.in_proj(x)
        gate = x
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
        x = self.act(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order, height, width)
        y = self.out_norm(self.scan(x.flatten(1, 2), paths))
        y = y.unflatten(1, (height, width))
        if self.gated:
            y = y * self.act(gate)
        return self.out_proj(y)

    def scan(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, D) along paths (K, T), summed over the paths: (N, L, D)."""
        projected = self.x_proj(x).unflatten(-1, (self.num_paths, self.heads + 2 * self.d_state))
        dt, B, C = projected.transpose(1, 2).split([self.heads, self.d_state, self.d_state], dim=-1)
        y, _ = torch.ops.vimamba.ssd(
            x.unflatten(-1, (self.heads, -1)),
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
