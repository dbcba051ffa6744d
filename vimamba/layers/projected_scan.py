"""Selective scans of sequences and maps with one projection to step sizes, B and C.

Sizes: N batch, L tokens, H and W map, D channels, S states, K paths of T steps.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vimamba.layers.init_linear import init_linear_
from vimamba.layers.scan import SelectiveScan
from vimamba.scan_orders import num_paths


class ProjectedScan(nn.Module):
    """A scan with one projection to step sizes, B and C of all paths.

    Args:
        dim: D.
        num_paths: K.
        d_state: S.
        dt_rank: Rank of the step-size projection.
        bias_scale: As in `SelectiveScan`.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_paths: int = 1,
        d_state: int,
        dt_rank: int,
        bias_scale: float = 1.0,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.num_paths, self.d_state, self.dt_rank = num_paths, d_state, dt_rank
        self.x_proj = nn.Linear(dim, num_paths * (dt_rank + 2 * d_state), bias=False, **dd)
        sizes = {"num_paths": num_paths, "d_state": d_state, "dt_rank": dt_rank}
        self.scan = SelectiveScan(dim, bias_scale=bias_scale, **sizes, **dd)

    def reset_parameters(self) -> None:
        """Initialize the parameters of the scan; other layers initialize themselves."""
        self.x_proj.reset_parameters()
        self.scan.reset_parameters()


class MapScan(ProjectedScan):
    """A scan of channels-first maps, followed by a norm.

    Args:
        dim: D.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum.
        d_state: S.
        dt_rank: Rank of the step-size projection.
        eps: Epsilon of the norm.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self, dim: int, *, scan_order: str, d_state: int, dt_rank: int, eps: float = 1e-5, **dd: Any
    ) -> None:
        count = num_paths(scan_order, 2)
        super().__init__(dim, num_paths=count, d_state=d_state, dt_rank=dt_rank, **dd)
        self.scan_order = scan_order
        self.out_norm = nn.LayerNorm(dim, eps=eps, **dd)

    def mix(self, x: Tensor) -> Tensor:
        """(N, D, H, W) to the same shape."""
        height, width = x.shape[2], x.shape[3]
        x = x.permute(0, 2, 3, 1)
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order)
        u = x.flatten(1, 2)
        y = self.out_norm(self.scan.mix(u, self.x_proj(u), paths))
        return y.transpose(1, 2).unflatten(2, (height, width))


def init_map_scans_(module: nn.Module) -> None:
    """Initialize convolutions and linear layers in a module the same way, but scans as in Mamba."""
    init_linear_(module, (nn.Conv2d, nn.Linear))
    for layer in module.modules():
        if isinstance(layer, ProjectedScan):
            layer.reset_parameters()
