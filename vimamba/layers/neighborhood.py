"""Attention of every cell to the cells around it, or to as many spread over the map.

Neighborhood attention (Hassani et al. 2022, arXiv:2204.07143), dilated (arXiv:2209.15001), without
special kernels: cells whose neighbors are nearly the same form a group, a rectangle of the map or
of every n-th row and column, and attend together to a slightly larger rectangle, of which a mask
leaves each cell its neighbors.

Sizes: N batch, H and W map, h heads of d channels, w side of a window; along the rows R groups of r
cells with s neighbors, along the columns G groups of g cells with t neighbors.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.layers.tracing import decide_when_run, keep_by_size

# what `group_cells` finds along one axis: cells, neighbors, distances, places
Groups = tuple[Tensor, Tensor, Tensor, Tensor]
# what `NeighborWeights` returns: weights, groups of rows and of columns
Neighborhood = tuple[Tensor, Groups, Groups]


def larger(a: int, b: int) -> int:
    """The larger size; sizes may be symbolic."""
    return max(a, b) if torch.jit.is_scripting() else torch.sym_max(a, b)  # type: ignore[return-value]


def smaller(a: int, b: int) -> int:
    """The smaller size; sizes may be symbolic."""
    return min(a, b) if torch.jit.is_scripting() else torch.sym_min(a, b)  # type: ignore[return-value]


def _first_neighbor(place: Tensor, count: Tensor, window: int) -> Tensor:
    """Where the window of the cells at `place` begins in classes of `count` cells."""
    return torch.minimum(place - window // 2, count - window).clamp(min=0)


def _find_groups(x: Tensor, axis: int, window: int, dilated: bool) -> Groups:
    """As `group_cells`."""
    size = x.shape[axis]
    step = smaller(larger(size // window, 1), window) if dilated else 1
    # cells with the same index modulo the step form a class, in which neighbors are adjacent
    longest = (size + step - 1) // step
    half = window // 2 + 1
    blocks = larger((longest + 1 - window) // half, 1)
    side = (longest + blocks - 1) // blocks
    reach = smaller(side + window - 1, longest)

    index = torch.arange(step * blocks, dtype=torch.int64, device=x.device).unsqueeze(1)
    start, block = index // blocks, index % blocks
    count = (size - start + step - 1) // step
    inside = torch.arange(side, dtype=torch.int64, device=x.device)
    place = torch.minimum(block * side + inside, count - 1)
    first = _first_neighbor(place[:, :1], count, window)
    first = torch.minimum(first, count - reach).clamp(min=0)
    slot = first + torch.arange(reach, dtype=torch.int64, device=x.device)
    cells, neighbors = place * step + start, slot * step + start
    distance = _distances(cells, neighbors, index.new_full((1,), step), count, window)

    cell = torch.arange(size, dtype=torch.int64, device=x.device)
    ordinal = cell // step
    group = cell % step * blocks + ordinal // side
    return cells, neighbors.clamp(max=size - 1), distance, group * side + ordinal % side


def _distances(
    cells: Tensor, neighbors: Tensor, step: Tensor, count: Tensor, window: int
) -> Tensor:
    """Distances (G, g, t) as `group_cells` returns them.

    Args:
        cells: (G, g).
        neighbors: (G, t); those beyond the map are none.
        step: (1,).
        count: Cells in the classes of `cells`, (G, g) or (G, 1).
        window: w.
    """
    place, slot = cells // step, neighbors // step
    first = _first_neighbor(place, count, window)
    ahead = slot.unsqueeze(1) - first.unsqueeze(2)
    is_near = (ahead >= 0) & (ahead < window) & (slot.unsqueeze(1) < count.unsqueeze(2))
    is_near = is_near & ((cells % step).unsqueeze(2) == (neighbors % step).unsqueeze(1))
    distance = slot.unsqueeze(1) - place.unsqueeze(2) + window - 1
    return distance.masked_fill(~is_near, 2 * window - 1)


def _find_simple_groups(x: Tensor, axis: int, window: int, dilated: bool) -> Groups:
    """As `group_cells`, of sizes without quotients: a group for each row, and one of all columns.

    More scores than for groups of some cells each; but products, quotients and minima of symbolic
    sizes take `torch.export` minutes.
    """
    cell = torch.arange(x.shape[axis], dtype=torch.int64, device=x.device)
    size = cell[-1:] + 1
    step = (size // window).clamp(1, window) if dilated else torch.ones_like(size)
    count = (size - cell % step + step - 1) // step
    if axis == -3:
        first = _first_neighbor(cell // step, count, window)
        slot = first.unsqueeze(1) + torch.arange(window, dtype=torch.int64, device=x.device)
        cells, count = cell.unsqueeze(1), count.unsqueeze(1)
        neighbors = slot * step + cells % step
    else:
        cells, count = cell.unsqueeze(0), count.unsqueeze(0)
        neighbors = cells
    distance = _distances(cells, neighbors, step, count, window)
    return cells, torch.minimum(neighbors, size - 1), distance, cell


_find_when_run = keep_by_size(decide_when_run(_find_groups))


# a symbolic trace keeps these calls, since it has no numbers for the sizes
@torch.fx.wrap
def group_cells(x: Tensor, axis: int, window: int, dilated: bool) -> Groups:
    """Groups of cells along one axis of n cells, and the `window` nearest cells of every cell.

    Args:
        x: (..., H, W, d).
        axis: -3 for the rows, -2 for the columns.
        window: w.
        dilated: Spread the neighbors over the whole axis, at most w of them.

    Returns:
        Indices of the cells of G groups (G, g), the last of a group perhaps repeated; indices of
        the cells that a group attends to (G, t); their distances from the cells in steps, plus
        w - 1, (G, g, t), with 2 w - 1 for those that are not neighbors; the place of every cell
        among the groups' G * g (n,).
    """
    if torch.jit.is_scripting():
        return _find_groups(x, axis, window, dilated)
    elif isinstance(x.shape[axis], torch.SymInt):
        return _find_simple_groups(x, axis, window, dilated)
    else:
        return _find_when_run(x, axis, window, dilated)


def gather_groups(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather from x (N, h, H, W, d) rows (R, r) and columns (G, g): (N, h, G, R, r * g, d)."""
    x = x.index_select(3, columns.flatten()).unflatten(3, (columns.shape[0], columns.shape[1]))
    x = x.transpose(2, 3).index_select(3, rows.flatten())
    return x.unflatten(3, (rows.shape[0], rows.shape[1])).flatten(4, 5)


def spread_groups(x: Tensor, rows: Groups, columns: Groups) -> Tensor:
    """From groups (N, h, G, R, r * g, d) back to the map (N, h, H, W, d)."""
    row_cells, _, _, row_places = rows
    column_cells, _, _, column_places = columns
    x = x.unflatten(4, (row_cells.shape[1], column_cells.shape[1])).flatten(3, 4)
    x = x.index_select(3, row_places).transpose(2, 3).flatten(3, 4)
    return x.index_select(3, column_places)


def _find_turns(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `turn_by_cell`."""
    height, width, channels = x.shape[-3], x.shape[-2], x.shape[-1]
    # the angles are computed in float32 at any precision, as in the official files
    step = torch.linspace(0, 1, channels // 4, dtype=torch.float32, device=x.device)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    angle = (1.0 / 10000.0**step).to(dtype)
    angle = torch.stack([-angle, angle], dim=1).flatten()
    rows = torch.arange(height, dtype=dtype, device=x.device)[:, None, None] * angle
    columns = torch.arange(width, dtype=dtype, device=x.device)[:, None] * angle
    cos = [rows.cos().expand(-1, width, -1), columns.cos().expand(height, -1, -1)]
    sin = [rows.sin().expand(-1, width, -1), columns.sin().expand(height, -1, -1)]
    swap = torch.eye(channels, dtype=x.dtype, device=x.device).unflatten(0, (-1, 2)).flip(1)
    return torch.cat(cos, dim=-1), torch.cat(sin, dim=-1), swap.flatten(0, 1)


_kept_turns = keep_by_size(_find_turns)


@torch.fx.wrap
def turn_by_cell(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and signed sines (H, W, d) of a rotary embedding for x (..., H, W, d), and a matrix.

    Row positions rotate the first half of the channels, column positions the second. The matrix
    (d, d) swaps the two channels of every pair.
    """
    return _find_turns(x) if torch.jit.is_scripting() else _kept_turns(x)


def turn(x: Tensor) -> Tensor:
    """Rotate adjacent pairs of channels of x (..., H, W, d)."""
    cos, sin, swap = turn_by_cell(x)
    # on a CPU 0.83 of the time that picking and merging every other channel takes
    return (x * cos + (x @ swap) * sin).type_as(x)


class NeighborWeights(nn.Module):
    """Weights of every cell for its neighbors, in groups.

    Args:
        window: w.
        dilated: Spread the neighbors over the whole map.
    """

    def __init__(self, window: int, *, dilated: bool) -> None:
        super().__init__()
        self.window, self.dilated = window, dilated

    def forward(self, q: Tensor, k: Tensor, table: Tensor) -> Neighborhood:
        """Weights (N, h, G, R, r * g, s * t), and groups of rows and of columns.

        Args:
            q: (N, h, H, W, d).
            k: The same.
            table: (h, 2 w - 1, 2 w - 1), biases by the distance in rows and in columns.
        """
        rows = group_cells(q, -3, self.window, self.dilated)
        columns = group_cells(q, -2, self.window, self.dilated)
        row_cells, row_neighbors, down, _ = rows
        column_cells, column_neighbors, across, _ = columns
        q = gather_groups(q, row_cells, column_cells)
        k = gather_groups(k, row_neighbors, column_neighbors)
        # (h, G, 2 w, g, t), then (h, G, R, r, g, s, t)
        bias = F.pad(table, (0, 1, 0, 1), value=-math.inf).index_select(2, across.flatten())
        groups, cells, neighbors = across.shape[0], across.shape[1], across.shape[2]
        bias = bias.unflatten(2, (groups, cells, neighbors)).transpose(1, 2)
        bias = bias.index_select(2, down.flatten())
        bias = bias.unflatten(2, (down.shape[0], down.shape[1], down.shape[2]))
        bias = bias.transpose(4, 5)
        scores = (q @ k.transpose(-2, -1)).unflatten(5, (bias.shape[5], bias.shape[6]))
        scores = scores.unflatten(4, (bias.shape[3], bias.shape[4])) + bias
        weights = scores.flatten(4, 5).flatten(5, 6).softmax(dim=-1)
        return weights.type_as(q), rows, columns


def average_neighbors(x: Tensor, neighborhood: Neighborhood) -> Tensor:
    """Average x (N, h, H, W, d) over every cell's neighbors: the same shape."""
    weights, rows, columns = neighborhood
    _, row_neighbors, _, _ = rows
    _, column_neighbors, _, _ = columns
    return spread_groups(weights @ gather_groups(x, row_neighbors, column_neighbors), rows, columns)
