"""The hidden attention of selective scans (Ali et al. 2024, arXiv:2403.01590).

With its step sizes, B and C held fixed, a scan is a matrix for each channel: entry (t, s) is the
contribution of token s to the result at token t. The rows of chosen tokens are the operator's
backward pass applied to ones at these tokens, so each row costs one scan and no matrix is formed.

Sizes: Q chosen tokens, K paths, h and w grid, P prefix tokens, D channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimamba.explain.errors import ExplainError
from vimamba.explain.scans import Scan, as_input, find_backbone, observe_scans
from vimamba.models._plain import PlainBackbone


def attention(
    model: nn.Module,
    image: Tensor,
    *,
    points: Sequence[tuple[float, float]] | None = None,
    layer: str | None = None,
    signed: bool = False,
    per_path: bool = False,
) -> NDArray[np.float32]:
    """The tokens that the results of a scan at chosen tokens depend on.

    The skip of a scan, each token times D, is left out. The sum over paths applies to mixers that
    sum their paths; those that weight or concatenate them are shown without their weights.

    Args:
        model: In eval mode.
        image: (C, H, W), preprocessed.
        points: (y, x) of Q points of the image, pixels. By default the prefix tokens, class token
            or registers, that the classifier reads, or the middle of the image if there are none.
        layer: Name of a scan, as returned by `delta`; the last one by default.
        signed: Average the signed entries over the channels; their absolute values if False.
        per_path: Return one map per path; if False their sum, taken before absolute values.

    Returns:
        (Q, h, w), or (Q, K, h, w) with `per_path`.

    Raises:
        ExplainError: The network has no selective scan, or none with this name; a point is outside.
    """
    image = as_input(model, image)
    scan = choose_scan(observe_scans(model, image), layer)
    sources = find_cells(scan, points, (image.shape[-2], image.shape[-1]))
    maps = torch.stack([attention_row(scan, source, signed=signed) for source in sources])
    if not per_path:
        whole = [attention_row(scan, source, signed=signed, merge=True) for source in sources]
        maps = torch.stack(whole)[:, 0]
    maps = maps[..., : scan.grid[0] * scan.grid[1]].unflatten(-1, scan.grid)
    return maps.float().cpu().numpy()


def attention_row(scan: Scan, cell: int, *, signed: bool, merge: bool = False) -> Tensor:
    """The row of one cell in the matrix of a scan.

    Args:
        scan: The scan.
        cell: Cell of the grid, or h * w + i for prefix token i.
        signed: As in `attention`.
        merge: Sum the paths.

    Returns:
        (K, h * w + P), or with `merge` (1, h * w + P), means over the channels.
    """
    chosen = scan.B.new_zeros(scan.num_cells)
    chosen[cell] = 1
    rows = scan.gather(scan.adjoint(_to_channels(scan, scan.spread(chosen))))
    rows = rows.sum(0, keepdim=True) if merge else rows
    return (rows if signed else rows.abs()).mean(-1)


def rollout(
    model: nn.Module, image: Tensor, *, points: Sequence[tuple[float, float]] | None = None
) -> NDArray[np.float32]:
    """Attention through all layers of a network whose blocks share one grid.

    As in attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928), a layer is the mean of the
    identity and its row-normalized attention. The entries are those of the scan with |B| and |C|:
    products of such rows need no matrix, and if S is 1 they are the absolute values of the scan's
    own entries.

    Args:
        model: In eval mode.
        image: (C, H, W), as the network takes it.
        points: As in `attention`.

    Returns:
        (Q, h, w); each map, with its prefix tokens, sums to 1.

    Raises:
        ExplainError: The network has no selective scan, or scans on several grids.
    """
    image = as_input(model, image)
    scans = observe_scans(model, image)
    grids = sorted({scan.grid for scan in scans}, reverse=True)
    if len(grids) > 1 or not isinstance(find_backbone(model), PlainBackbone):
        raise ExplainError(
            f"rollout of model={type(model).__name__} is not defined: its blocks do not share one "
            f"grid, scans are on {grids}; attention explains one layer"
        )
    sources = find_cells(scans[-1], points, (image.shape[-2], image.shape[-1]))
    maps = []
    for source in sources:
        row = scans[-1].B.new_zeros(scans[-1].num_cells)
        row[source] = 1
        for scan in reversed(scans):
            row = _roll_back(scan.majorant(), row)
        maps.append(row[: scans[-1].grid[0] * scans[-1].grid[1]].unflatten(0, scans[-1].grid))
    return torch.stack(maps).float().cpu().numpy()


def _roll_back(scan: Scan, row: Tensor) -> Tensor:
    """A row (h * w + P) times one layer."""
    ones = scan.spread(torch.ones_like(row))
    sums = scan.gather(scan.apply(_to_channels(scan, ones))).sum(0).mean(-1)
    # a token that reads nothing keeps its own value
    weights = torch.where(sums > 0, row / sums.clamp(min=torch.finfo(row.dtype).tiny), 0.0)
    attended = scan.gather(scan.adjoint(_to_channels(scan, scan.spread(weights)))).sum(0).mean(-1)
    return (row + attended + torch.where(sums > 0, 0.0, row)) / 2


def _to_channels(scan: Scan, values: Tensor) -> Tensor:
    return values[..., None].expand(scan.shape)


def choose_scan(scans: Sequence[Scan], layer: str | None) -> Scan:
    """The scan with this name, or the last one.

    Raises:
        ExplainError: No scan has this name.
    """
    found = [scan for scan in scans if layer in (None, scan.layer)]
    if not found:
        names = ", ".join(dict.fromkeys(scan.layer for scan in scans))
        raise ExplainError(f"layer={layer!r} is not a selective scan; choose from {names}")
    return found[-1]


def find_cells(
    scan: Scan, points: Sequence[tuple[float, float]] | None, size: tuple[int, int]
) -> list[int]:
    """Cells of points in an image of this height and width; see `attention` for None.

    Raises:
        ExplainError: A point is outside.
    """
    height, width = scan.grid
    if points is None:
        prefix = [height * width + i for i in range(scan.num_prefix)]
        return prefix or [height // 2 * width + width // 2]
    cells = []
    for y, x in points:
        if not (0 <= y < size[0] and 0 <= x < size[1]):
            raise ExplainError(
                f"point {(y, x)} is outside the image of {size[0]} x {size[1]} pixels; give (y, x)"
            )
        cells.append(int(y * height / size[0]) * width + int(x * width / size[1]))
    return cells
