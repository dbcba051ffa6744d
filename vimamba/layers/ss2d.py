"""SS2D: a selective state space over an image, along any scan order (VMamba, arXiv:2401.10166).

The tokens stay where they are: the scan walks the path table, so an order costs no copy. One
projection makes the step sizes, B and C of all paths at once, since they read the same tokens.

Sizes: N batch, H and W grid, L = H * W tokens, C channels, D = expand * C, K paths, S states.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.layers.ssm import (
    init_state_decay_,
    init_step_bias_,
    init_step_projection_,
)
from vimamba.scan_orders import num_paths


class SS2D(nn.Module):
    """Mix image tokens with one selective scan per path and add the results up.

    Args:
        dim: C.
        scan_order: Name from `vimamba.list_scan_orders()`, with parameters if it has any.
        d_state: S.
        expand: D / C.
        dt_rank: Rank of the step-size projection; C / 16 rounded up if None.
        gated: Multiply the normed output by a SiLU gate.
        conv_bias: Give the depthwise convolution a bias.
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = int(expand * dim)
        self.scan_order = scan_order
        self.num_paths = num_paths(scan_order)
        self.d_state = d_state
        self.dt_rank = dt_rank or math.ceil(dim / 16)
        self.gated = gated

        self.in_proj = nn.Linear(dim, 2 * inner if gated else inner, bias=False, **dd)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias, **dd)
        self.act = nn.SiLU()
        rows = self.num_paths * (self.dt_rank + 2 * d_state)
        self.x_proj = nn.Linear(inner, rows, bias=False, **dd)
        self.dt_proj = nn.ModuleList(
            nn.Linear(self.dt_rank, inner, bias=False, **dd) for _ in range(self.num_paths)
        )
        self.dt_bias = nn.Parameter(torch.empty(self.num_paths, inner, **dd))
        self.A_log = nn.Parameter(torch.empty(self.num_paths, inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(self.num_paths, inner, **dd))
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the parameters of the scan; the other layers start themselves."""
        self.x_proj.reset_parameters()
        for projection in self.dt_proj:
            init_step_projection_(projection)  # type: ignore[arg-type]
        init_step_bias_(self.dt_bias)
        init_state_decay_(self.A_log)
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

    def scan(self, u: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, D) along paths (K, T), summed over the paths: (N, L, D)."""
        projected = self.x_proj(u).unflatten(-1, (self.num_paths, self.dt_rank + 2 * self.d_state))
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        deltas = []
        for k, dt_proj in enumerate(self.dt_proj):
            deltas.append(dt_proj(dt[:, :, k]))
        return torch.ops.vimamba.selective_scan(
            u,
            torch.stack(deltas, dim=1),
            -torch.exp(self.A_log),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D,
            None,
            self.dt_bias,
            True,
            paths,
            True,
            "auto",
        )
