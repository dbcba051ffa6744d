"""Mixers of image tokens: a convolution, a state space along a scan order's paths, a norm.

Tokens are not reordered: the scan follows the path table, so an order costs no copy. One projection
computes the step sizes, B and C of all paths at once, since they read the same tokens.

    SS2D   the scan of Mamba: a decay for every channel and state (VMamba, arXiv:2401.10166)
    SSD2D  that of Mamba-2: one for every head of channels, which allows many more states

Sizes: N batch, H and W grid, or *grid of 1 to 3 axes, L tokens on it, C channels, D = expand * C,
K paths, S states.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.layers.given_paths import choose_paths
from vimamba.layers.scan import SelectiveScan, StateSpaceDuality, check_sizes
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.scan_orders import num_paths

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ScanMixer(nn.Module):
    """Base of these mixers: everything except the scan and its projection.

    Args:
        dim: C.
        inner: D.
        act: Activation after the convolution, and of the gate.
        scan_order: One of `vimamba.list_scan_orders(dims)`, with parameters if it has any, or a
            sum.
        gated: Multiply the normed output by an activated gate.
        conv_bias: Give the depthwise convolution a bias.
        dims: Axes of the grid, 1 to 3.
        combine: Module from the paths' results (N, K, L, D) to (N, L, D); their sum if None.
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
        combine: nn.Module | None,
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
        self.combine = combine
        self.out_norm = nn.LayerNorm(inner, **dd)
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)

    def forward(self, x: Tensor, paths: Tensor | None = None) -> Tensor:
        """(N, H, W, C), or (N, *grid, C), to the same shape.

        Args:
            x: Tokens on a grid.
            paths: (K, T), or (N, K, T) with separate paths for every image, used instead of the
                scan order's; entries as in `vimamba_kernels.selective_scan`.

        Raises:
            TypeError: `paths` is not an integer tensor.
            ValueError: It has the wrong shape, leaves the grid or repeats a token.
        """
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        grid = x.shape[1:-1]
        x = self.in_proj(x)
        gate = x
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
        x = self.act(self.conv(x.movedim(-1, 1))).movedim(1, -1)
        chosen = choose_paths(x, self.scan_order, self.num_paths, paths)
        y = self.out_norm(self.mix_grid(x, chosen)).unflatten(1, grid)
        if self.gated:
            y = y * self.act(gate)
        return self.out_proj(y)

    def mix_grid(self, x: Tensor, paths: Tensor) -> Tensor:
        """As `mix`, for tokens on their grid, (N, *grid, D); for mixers that need the grid."""
        return self.mix(x.flatten(1, -2), paths)

    def mix(self, u: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, D) along paths (K, T) or (N, K, T), combined: (N, L, D)."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialize the parameters of the scan; other layers initialize themselves."""
        self.x_proj.reset_parameters()  # type: ignore[operator]
        self.scan.reset_parameters()  # type: ignore[operator]


class SS2D(ScanMixer):
    """Mix image tokens with one selective scan per path and sum the results.

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
        combine: From the paths' results (N, K, L, D) to one (N, L, D); their sum if None.
        device, dtype: Device and dtype of the parameters.
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
        combine: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        check_sizes(dim=dim, d_state=d_state, dt_rank=dt_rank)
        dd = {"device": device, "dtype": dtype}
        inner = int(expand * dim)
        shell = {"scan_order": scan_order, "gated": gated, "conv_bias": conv_bias, "dims": dims}
        shell |= {"combine": combine}
        super().__init__(dim, inner, nn.SiLU(), dd=dd, **shell)
        self.d_state = d_state
        self.dt_rank = dt_rank
        rows = self.num_paths * (self.dt_rank + 2 * d_state)
        self.x_proj = nn.Linear(inner, rows, bias=False, **dd)
        self.scan = SelectiveScan(
            inner, num_paths=self.num_paths, d_state=d_state, dt_rank=self.dt_rank, **dd
        )

    def mix(self, u: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, D) along paths (K, T) or (N, K, T), combined: (N, L, D)."""
        if self.combine is None:
            return self.scan.mix(u, self.x_proj(u), paths)
        return self.combine(self.scan.mix(u, self.x_proj(u), paths, merge=False))


class SSD2D(ScanMixer):
    """Mix image tokens with one scan of scalar decays per path and sum the results.

    The D channels form R heads of P; the step sizes, one per head, need no separate projection.

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
        combine: From the paths' results (N, K, L, D) to one (N, L, D); their sum if None.
        device, dtype: Device and dtype of the parameters.
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
        combine: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        heads = math.ceil(dim / 16) if heads is None else heads
        check_sizes(dim=dim, d_state=d_state, heads=heads)
        dd = {"device": device, "dtype": dtype}
        inner = int(expand * dim)
        if inner % heads:
            raise ValueError(f"heads={heads} must divide the {inner} inner channels")
        shell = {"scan_order": scan_order, "gated": gated, "conv_bias": conv_bias, "dims": dims}
        shell |= {"combine": combine}
        super().__init__(dim, inner, nn.GELU(), dd=dd, **shell)
        self.d_state = d_state
        self.heads = heads
        rows = self.num_paths * (heads + 2 * d_state)
        self.x_proj = nn.Linear(inner, rows, bias=False, **dd)
        self.scan = StateSpaceDuality(heads, inner // heads, num_paths=self.num_paths, **dd)

    def mix(self, u: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, D) along paths (K, T) or (N, K, T), combined: (N, L, D)."""
        projected = self.x_proj(u).unflatten(-1, (self.num_paths, self.heads + 2 * self.d_state))
        dt, B, C = projected.transpose(1, 2).split([self.heads, self.d_state, self.d_state], dim=-1)
        heads = u.unflatten(-1, (self.heads, -1))
        if self.combine is None:
            return self.scan(heads, dt, B, C, paths).flatten(-2)
        return self.combine(self.scan(heads, dt, B, C, paths, merge=False).flatten(-2))


def ss2d_rules(theirs: str, ours: str) -> dict[str, str]:
    """Rules for one SS2D with the names in VMamba's files, which later networks kept.

    Args:
        theirs: Pattern of everything before a parameter's name.
        ours: Its replacement.
    """
    names = {
        r"conv2d\.(?:1\.)?": "conv.",
        "x_proj_weight": "x_proj.weight",
        "dt_projs_weight": "scan.dt_proj",
        "dt_projs_bias": "scan.dt_bias",
        "A_logs": "scan.A_log",
        "Ds": "scan.D",
        r"in_proj\.": "in_proj.",
        r"out_norm\.": "out_norm.",
        r"out_proj\.": "out_proj.",
    }
    return {f"{theirs}{name}(?P<leaf>.*)": f"{ours}{our}\\g<leaf>" for name, our in names.items()}


def split_paths(state_dict: dict[str, Tensor], num_paths: int = 4) -> dict[str, Tensor]:
    """Split renamed SS2D parameters into an axis or a layer per path."""
    state: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "dt_proj":
            state.update({f"{key}.{k}.weight": weight for k, weight in enumerate(value)})
        elif leaf in ("A_log", "D", "dt_bias") and value.shape[0] != num_paths:
            state[key] = value.unflatten(0, (num_paths, -1))
        elif key.endswith("x_proj.weight") and value.ndim == 3:
            state[key] = value.flatten(0, 1)
        else:
            state[key] = value
    return state
