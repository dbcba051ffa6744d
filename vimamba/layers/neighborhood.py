"""Attention of every cell to the cells around it, or to as many spread over the map.

Neighborhood attention (Hassani et al. 2022, arXiv:2204.07143), dilated (arXiv:2209.15001), computed
as products of a row of queries with the rows of their neighbors, without special kernels.
Sizes: N batch, H and W map, h heads of d channels, w side of a window.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


# a symbolic trace keeps these calls, since it has no numbers for the sizes
@torch.fx.wrap
def find_neighbors(
    x: Tensor, axis: int, window: int, dilated: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The `window` nearest cells of every cell along one axis of n cells, including itself.

    Args:
        x: A tensor with the map's size.
        axis: Axis of `x`.
        window: w.
        dilated: Spread the neighbors over the whole axis, at most w of them.

    Returns:
        Indices of the neighbors (n, w); their distances in steps, plus w - 1, (n, w); the same
        distances between all cells (n, n), with 2 w - 1 for cells that are not neighbors.
    """
    cells = torch.arange(x.shape[axis], dtype=torch.int64, device=x.device)
    length = cells[-1:] + 1
    step = (length // window).clamp(1, window) if dilated else torch.ones_like(length)
    # cells with the same index modulo the dilation form a class, in which neighbors are adjacent
    place, start = cells // step, cells % step
    count = (length - start + step - 1) // step
    first = torch.minimum(place - window // 2, count - window).clamp(min=0)
    slot = first.unsqueeze(1) + torch.arange(window, dtype=torch.int64, device=x.device)
    none, center = 2 * window - 1, place.unsqueeze(1) - window + 1
    index = torch.minimum(slot * step + start.unsqueeze(1), length - 1)
    distance = (slot - center).masked_fill(slot >= count.unsqueeze(1), none)
    ahead = place - first.unsqueeze(1)
    is_near = (start == start.unsqueeze(1)) & (ahead >= 0) & (ahead < window)
    return index, distance, (place - center).masked_fill(~is_near, none)


@torch.fx.wrap
def turn_by_cell(q: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (H, W, d) of a rotary embedding for q (N, h, H, W, d).

    Row positions rotate the first half of the channels, column positions the second.
    """
    height, width, quarter = q.shape[2], q.shape[3], q.shape[4] // 4
    # the angles are computed in float32 at any precision, as in the official files
    step = torch.linspace(0, 1, quarter, dtype=torch.float32, device=q.device)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    angle = (1.0 / 10000.0**step).repeat_interleave(2).to(dtype)
    rows = torch.arange(height, dtype=dtype, device=q.device)[:, None, None] * angle
    columns = torch.arange(width, dtype=dtype, device=q.device)[:, None] * angle
    rows, columns = rows.expand(-1, width, -1), columns.expand(height, -1, -1)
    angles = torch.cat([rows, columns], dim=-1)
    return angles.cos(), angles.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs of channels of (N, h, H, W, d)."""
    rotated = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return (x * cos + rotated * sin).type_as(x)


def neighbor_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Gather from x (N, h, H, W, d) the neighbor rows (H, w) of each row: (N, h, H, w * W, d)."""
    found = x.index_select(2, rows.flatten())
    return found.unflatten(2, (-1, rows.shape[1])).flatten(3, 4)


class NeighborWeights(nn.Module):
    """Attention of every cell to its neighbors, as weights of all cells in their rows.

    Args:
        window: w.
        dilated: Spread the neighbors over the whole map.
    """

    def __init__(self, window: int, *, dilated: bool) -> None:
        super().__init__()
        self.window, self.dilated = window, dilated

    def forward(self, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, h, H, W, w * W) and their rows (H, w).

        Args:
            q: (N, h, H, W, d).
            k: The same.
            table: (h, 2 w - 1, 2 w - 1), biases by the distance in rows and in columns.
        """
        rows, down, _ = find_neighbors(q, 2, self.window, self.dilated)
        _, _, across = find_neighbors(q, 3, self.window, self.dilated)
        table = F.pad(table, (0, 1, 0, 1), value=-math.inf)
        # indexed by the columns of query and key, then by row and neighbor
        by_column = table.index_select(2, across.flatten())
        bias = by_column.index_select(1, down.flatten())
        bias = bias.unflatten(1, (-1, self.window)).unflatten(3, (-1, across.shape[1]))
        bias = bias.transpose(2, 3).flatten(3)
        scores = q @ neighbor_rows(k, rows).transpose(-2, -1)
        return (scores + bias).softmax(dim=-1).type_as(q), rows
