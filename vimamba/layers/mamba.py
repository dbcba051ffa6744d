"""The Mamba mixer along K paths: what Vim and its descendants put between two norms.

Mamba (arXiv:2312.00752, figure 3) reads one sequence with a causal convolution and a selective
scan. Vim (arXiv:2401.09417, algorithm 1) reads the same tokens along two paths, each with its own
convolution and its own scan parameters, and averages. Here K paths do that, whatever they are.

Sizes: N batch, L tokens, C channels, D = expand * C, K paths of T steps, S states, W taps.
"""

import math
from typing import Any

import torch
from timm.layers import DropPath, RmsNorm
from torch import Tensor, nn

from vimamba.layers.ssm import (
    StepProjection,
    init_state_decay_,
    init_step_bias_,
    init_step_projection_,
)
from vimamba.layers.tracing import refuse_plain_onnx


class MambaMixer(nn.Module):
    """Causal convolution and selective scan along each path, gated and averaged.

    Args:
        dim: C.
        num_paths: K.
        d_state: S.
        expand: D / C.
        d_conv: W.
        dt_rank: Rank of the step-size projection; C / 16 rounded up if None.
        average_paths: Divide the sum over the paths by K.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_paths: int = 2,
        d_state: int = 16,
        expand: float = 2.0,
        d_conv: int = 4,
        dt_rank: int | None = None,
        average_paths: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        inner = int(expand * dim)
        self.num_paths = num_paths
        self.d_state = d_state
        self.d_conv = d_conv
        self.dt_rank = dt_rank or math.ceil(dim / 16)
        self.average_paths = average_paths

        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, **dd)
        self.conv = nn.Conv1d(
            num_paths * inner, num_paths * inner, d_conv, groups=num_paths * inner, **dd
        )
        rows = self.dt_rank + 2 * d_state
        self.x_proj = nn.ModuleList(
            nn.Linear(inner, rows, bias=False, **dd) for _ in range(num_paths)
        )
        self.dt_proj = StepProjection(
            nn.Linear(self.dt_rank, inner, bias=False, **dd) for _ in range(num_paths)
        )
        self.dt_bias = nn.Parameter(torch.empty(num_paths, inner, **dd))
        self.A_log = nn.Parameter(torch.empty(num_paths, inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(num_paths, inner, **dd))
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the parameters of the scan; the other layers start themselves."""
        for projection in self.dt_proj:
            init_step_projection_(projection)  # type: ignore[arg-type]
        init_step_bias_(self.dt_bias)
        init_state_decay_(self.A_log)
        nn.init.ones_(self.D)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C) along paths to (N, L, C).

        Args:
            x: All tokens; a class token is one of them.
            paths: (K, T), or (N, K, T) with paths of its own for every image, over all L tokens:
                `insert_class_token` adds a class token to paths over a grid.
        """
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        u = self.convolve(x, paths)
        projected = []
        for k, x_proj in enumerate(self.x_proj):
            projected.append(x_proj(u[:, k]))
        sizes = [self.dt_rank, self.d_state, self.d_state]
        dt, B, C = torch.stack(projected, dim=1).split(sizes, dim=-1)
        delta, delta_weight = self.dt_proj(dt)
        y = torch.ops.vimamba.selective_scan(
            u,
            delta,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            gate,
            self.dt_bias,
            delta_weight,
            True,
            paths,
            True,
            "auto",
        )
        y = self.out_proj(y)
        return y / self.num_paths if self.average_paths else y

    def convolve(self, x: Tensor, paths: Tensor) -> Tensor:
        """Causal depthwise convolution and SiLU along each path: (N, L, D) to (N, K, L, D).

        Step t sees the tokens of steps t - W + 1 .. t; entries of -1 read zero and write nothing.
        """
        bias = self.conv.bias
        assert bias is not None
        return torch.ops.vimamba.causal_conv_along_paths(
            x,
            self.conv.weight.view(self.num_paths, -1, self.d_conv),
            bias.view(self.num_paths, -1),
            paths,
            "silu",
            "auto",
        )


class VimBlock(nn.Module):
    """Pre-norm residual block: RMSNorm, then the Mamba mixer along the paths."""

    def __init__(self, dim: int, *, drop_path: float, dd: dict[str, Any], **mixer: Any) -> None:
        super().__init__()
        self.norm = RmsNorm(dim, eps=1e-5, **dd)
        self.mixer = MambaMixer(dim, **mixer, **dd)
        self.drop_path = DropPath(drop_path)

    def update(self, x: Tensor, paths: Tensor) -> Tensor:
        """What the block adds to the tokens (N, L, C)."""
        return self.drop_path(self.mixer(self.norm(x), paths))

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C) along paths (K, T) or (N, K, T) to (N, L, C)."""
        return x + self.update(x, paths)
