"""The definition of the spanning tree of a grid, in plain PyTorch without a loop over cells.

Boruvka's algorithm finds the edges: every component takes its lightest one, log2(L) times. An Euler
tour of the tree, which follows every edge once in each direction, shows which end of an edge is
nearer to the root: the one from which the tour first takes the edge.

Sizes: B batch, H and W grid, L = H * W cells, E edges.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_tree_reference(down: Tensor, right: Tensor) -> Tensor:
    """The parents of all cells; arguments as the op's."""
    height, width = right.shape[1], down.shape[2]
    if height * width == 1:
        return torch.full((right.shape[0], 1), -1, dtype=torch.int64, device=right.device)
    chosen = _lightest_edges(down, right)
    number = (height - 1) * width
    below = chosen[:, :number].unflatten(1, (height - 1, width))
    beside = chosen[:, number:].unflatten(1, (height, width - 1))
    # whether each cell is connected to the cell below, right, above, left
    joined = [F.pad(below, (0, 0, 0, 1)), F.pad(beside, (0, 1))]
    joined += [F.pad(below, (0, 0, 1, 0)), F.pad(beside, (1, 0))]
    return _parents(torch.stack(joined, dim=-1).flatten(1, 2), width)


def _ends(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The two cells of every edge, (E), in the order of the edges."""
    cells = torch.arange(height * width, dtype=torch.int64, device=device).unflatten(
        0, (height, width)
    )
    first = torch.cat([cells[:-1].flatten(), cells[:, :-1].flatten()])
    second = torch.cat([cells[1:].flatten(), cells[:, 1:].flatten()])
    return first, second


def _lightest_edges(down: Tensor, right: Tensor) -> Tensor:
    """Whether each edge (B, E) is in the minimum spanning tree."""
    batch, height, width = right.shape[0], right.shape[1], down.shape[2]
    length, device = height * width, right.device
    first, second = _ends(height, width, device)
    weights = torch.cat([down.flatten(1), right.flatten(1)], dim=1)
    edges = weights.shape[1]
    order = weights.argsort(dim=1, stable=True)
    # no two edges have the same rank
    numbers = torch.arange(edges, dtype=torch.int64, device=device).expand(batch, -1)
    rank = torch.empty_like(order).scatter_(1, order, numbers)
    cells = torch.arange(length, dtype=torch.int64, device=device).expand(batch, -1)
    component, chosen = cells, torch.zeros(batch, edges, dtype=torch.bool, device=device)
    rounds = (length - 1).bit_length()
    for _ in range(rounds):
        a, b = component[:, first], component[:, second]
        wanted = torch.where(a != b, rank, edges)
        least = torch.full_like(cells, edges)
        least = least.scatter_reduce(1, a, wanted, "amin").scatter_reduce(1, b, wanted, "amin")
        edge = order.gather(1, least.clamp(max=edges - 1))
        # the component at the other end of the edge; itself if no edge leaves it
        ends = a.gather(1, edge), b.gather(1, edge)
        other = torch.where(ends[0] == cells, ends[1], ends[0])
        found = least < edges
        other = torch.where(found, other, cells)
        chosen = chosen.scatter_reduce(1, edge, found, "amax")
        # of two components that chose the same edge, the first is kept
        mutual = (other.gather(1, other) == cells) & (cells < other)
        other = torch.where(mutual, cells, other)
        for _ in range(rounds):
            other = other.gather(1, other)
        component = other.gather(1, component)
    return chosen


def _parents(joined: Tensor, width: int) -> Tensor:
    """Parents (B, L) of a tree's cells; `joined` (B, L, 4) marks their neighbors."""
    batch, length = joined.shape[:2]
    offsets = torch.tensor([width, 1, -width, -1], dtype=torch.int64, device=joined.device)
    cells = torch.arange(length, dtype=torch.int64, device=joined.device).unsqueeze(1)
    target = (cells + offsets).clamp(0, length - 1).expand(batch, -1, -1)
    # arc 4 i + d goes from cell i in direction d, its twin goes back
    direction = torch.arange(4, dtype=torch.int64, device=joined.device)
    twin = (4 * target + (direction + 2) % 4).flatten(1)
    # the tour leaves a cell by the next arc after the one that leads back
    following = direction.expand_as(joined)
    for turn in (3, 2, 1):
        ahead = (direction + turn) % 4
        following = torch.where(joined[:, :, ahead], ahead, following)
    leaving = (4 * cells + following).flatten(1)
    arcs = torch.arange(4 * length, dtype=torch.int64, device=joined.device).expand(batch, -1)
    start = joined[:, 0].to(torch.int64).argmax(dim=1, keepdim=True)
    follower = leaving.gather(1, twin)
    is_last = (follower == start) | ~joined.flatten(1)
    follower = torch.where(is_last, arcs, follower)
    # number of arcs until the tour ends
    left = torch.where(is_last, 0, 1)
    for _ in range((2 * length - 2).bit_length()):
        left = left + left.gather(1, follower)
        follower = follower.gather(1, follower)
    comes_first = (left.gather(1, twin) > left).unflatten(1, (length, 4))
    parents = torch.where(comes_first & joined, target + 1, 0).sum(dim=2) - 1
    return parents
