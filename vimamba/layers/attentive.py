"""Attention to near and far cells, whose weights also average the states of a scan.

A2Mamba's mixer (Lou et al. 2025, arXiv:2507.16624).
Sizes: N batch, H and W map, L = H * W, C channels, h heads of d channels, w side of a window, K
paths.
"""

import math
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vimamba.layers.neighborhood import Neighborhood, NeighborWeights, average_neighbors, turn
from vimamba.layers.projected_scan import ProjectedScan
from vimamba.layers.resample_tokens import resample_tokens
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.scan_orders import num_paths


class StateAverage(ProjectedScan):
    """A scan whose states are averaged by attention weights before they are read.

    Args:
        dim: C.
        heads: h.
        scan_order: Order of the scan. With several paths, the states of each are averaged and read,
            and the results are summed.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, heads: int, *, scan_order: str, **dd: Any) -> None:
        count, dt_rank = num_paths(scan_order, 2), math.ceil(dim / 16)
        super().__init__(dim, num_paths=count, d_state=1, dt_rank=dt_rank, **dd)
        self.heads, self.scan_order = heads, scan_order
        self.conv = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, **dd)
        self.act = nn.SiLU()
        self.fusion = nn.Conv2d(heads, heads, 1, **dd)

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        near: Neighborhood,
        far: Neighborhood,
    ) -> Tensor:
        """(N, C, H, W) to (N, C, H, W).

        Args:
            x: Input of the scan.
            q: Unused.
            k: Unused.
            near: What `NeighborWeights` returns for the first half of the heads.
            far: The same for the second half.
        """
        height, width = x.shape[2], x.shape[3]
        x = self.act(self.conv(x)).permute(0, 2, 3, 1)
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order)
        u = x.flatten(1, 2)
        states, C = self.scan.states(u, self.x_proj(u), paths)
        # (N, K, L, C) to (N, h / 2, H, W, K * d) twice
        maps = states.unflatten(2, (height, width)).unflatten(4, (2, self.heads // 2, -1))
        close, distant = maps.permute(0, 4, 5, 2, 3, 1, 6).flatten(5).unbind(1)
        parts = [average_neighbors(close, near), average_neighbors(distant, far)]
        fused = self.fusion(torch.cat(parts, dim=1).flatten(3))
        fused = fused.unflatten(3, (width, self.num_paths, -1))
        fused = fused.permute(0, 4, 2, 3, 1, 5).flatten(4).flatten(2, 3)
        y = (fused * C).sum(1) + self.scan.D.sum(0) * u
        return y.transpose(1, 2).unflatten(2, (height, width))


class GlobalAverage(nn.Module):
    """Global attention.

    Args:
        heads: h.
        size: Height and width of the map for which the biases are learned; for other sizes they are
            resampled bicubically as an L x L image.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, heads: int, size: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.cells = size[0] * size[1]
        self.bias = nn.Parameter(torch.empty(heads, self.cells, self.cells, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the biases to zero."""
        nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        near: Neighborhood,
        far: Neighborhood,
    ) -> Tensor:
        """(N, C, H, W) to (N, C, H, W).

        Args:
            x: Map to average.
            q: (N, h, H, W, d).
            k: The same.
            near: Unused.
            far: Unused.
        """
        height, width = x.shape[2], x.shape[3]
        v = x.unflatten(1, (q.shape[1], -1)).flatten(3).transpose(2, 3)
        bias = resample_biases(self.bias, self.cells, height * width).type_as(q)
        scores = q.flatten(2, 3) @ k.flatten(2, 3).transpose(2, 3) + bias
        y = scores.softmax(dim=-1).type_as(v) @ v
        return y.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))


def resample_biases(bias: Tensor, old: int, new: int) -> Tensor:
    """Resample biases (h, L, L) from `old` to `new` cells."""
    picture = bias.flatten(1).T.unsqueeze(0)
    found = resample_tokens(picture, (old, old), (new, new), antialias=False)
    return found.squeeze(0).T.unflatten(1, (new, new))


class AttentiveMixer(nn.Module):
    """Attention to near and far cells, then an average of states or of the whole map.

    Args:
        dim: C.
        heads: h, even.
        window: w, odd.
        average: Module from the attention's output, queries, keys and weights to a map.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, heads: int, window: int, average: nn.Module, **dd: Any) -> None:
        super().__init__()
        if heads % 2 or dim % (4 * heads):
            raise ValueError(f"heads={heads} must be even, and {dim} channels 4 times as many")
        if window % 2 == 0:
            raise ValueError(f"window={window} must be odd")
        self.heads, self.head_dim = heads, dim // heads
        self.gate = nn.Sequential(nn.Conv2d(dim, dim, 1, **dd), nn.BatchNorm2d(dim, **dd))
        self.act = nn.SiLU()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, **dd)
        self.bias = nn.Parameter(torch.empty(heads // 2, 2 * window - 1, 2 * window - 1, **dd))
        self.near = NeighborWeights(window, dilated=False)
        self.far = NeighborWeights(window, dilated=True)
        self.average = average
        self.norm = LayerNorm2d(dim, **dd)
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, **dd)
        self.proj_norm = LayerNorm2d(dim, **dd)
        self.proj = nn.Conv2d(dim, dim, 1, **dd)
        nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Initialize the distance biases to zero; other layers initialize themselves."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        gate = self.act(self.gate(x))
        qkv = self.qkv(x)
        lepe = self.lepe(qkv.chunk(3, dim=1)[2])
        # (N, 3 C, H, W) to (N, 3, h, H, W, d)
        parts = qkv.unflatten(1, (3, self.heads, self.head_dim)).permute(0, 1, 2, 4, 5, 3)
        qk, v = parts.contiguous().split([2, 1], dim=1)
        q, k = turn(qk).unbind(1)
        q, v = q * self.head_dim**-0.5, v.squeeze(1)
        (q1, q2), (k1, k2), (v1, v2) = q.chunk(2, dim=1), k.chunk(2, dim=1), v.chunk(2, dim=1)
        near, far = self.near(q1, k1, self.bias), self.far(q2, k2, self.bias)
        v1 = average_neighbors(v1, near)
        # far attention reads the output of near attention
        v2 = average_neighbors(v1 + v2, far)
        # as norms and convolutions leave their results: channels last in memory
        y = torch.cat([v1, v2], dim=1).permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)
        y = self.average(y, q, k, near, far)
        return self.proj(self.proj_norm(gate * (self.norm(y) + lepe)))
