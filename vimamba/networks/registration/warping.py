"""Displacement fields for images and volumes: warping, integration of velocities, composition.

A field (N, n, *grid) gives for every cell of a grid with n axes, 2 or 3, the displacement to the
source of its value: component c is along axis c, in cells. These are VoxelMorph's conventions
(arXiv:1809.05231), as expected by weights of networks that descend from it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_LINEAR: dict[int, str] = {2: "bilinear", 3: "trilinear"}


def warp(x: Tensor, flow: Tensor, *, mode: Literal["linear", "nearest"] = "linear") -> Tensor:
    """Resample `x` at every cell's position plus its displacement; zeros outside.

    A sample that is partly outside is blended with zeros. Displacements along an axis with one cell
    are ignored.

    Args:
        x: (N, C, *grid), of any floating dtype.
        flow: (N, n, *grid), cells.
        mode: "linear" between cells, or the "nearest" one, for label maps.

    Returns:
        (N, C, *grid), in the dtype of `x`.

    Raises:
        ValueError: The shapes do not match, or `mode` is unknown.
    """
    axes = x.ndim - 2
    if axes not in _LINEAR or flow.shape != (x.shape[0], axes, *x.shape[2:]):
        raise ValueError(
            f"flow={tuple(flow.shape)} must be {(x.shape[0], axes, *x.shape[2:])}, one component "
            f"for each of two or three axes of x={tuple(x.shape)}"
        )
    if mode not in ("linear", "nearest"):
        raise ValueError(f"mode={mode!r} must be 'linear' or 'nearest'")
    # positions in half precision would be off by whole cells
    dtype = torch.promote_types(torch.promote_types(x.dtype, flow.dtype), torch.float32)
    places = []
    for axis, side in enumerate(x.shape[2:]):
        cells = torch.arange(side, dtype=dtype, device=x.device)
        cells = cells.view([-1 if a == axis else 1 for a in range(axes)])
        places.append(2.0 * (cells + flow[:, axis].to(dtype)) / max(side - 1, 1) - 1.0)
    # the last axis comes first
    grid = torch.stack(places[::-1], dim=-1)
    kind = "bilinear" if mode == "linear" else "nearest"
    with torch.autocast(x.device.type, enabled=False):
        return F.grid_sample(x.to(dtype), grid, mode=kind, align_corners=True).to(x.dtype)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The field of two warps: `warp(warp(x, first), then)` up to interpolation."""
    return warp(first, then) + then


def integrate_velocity(velocity: Tensor, steps: int = 7) -> Tensor:
    """Displacement along a stationary velocity for unit time, by scaling and squaring.

    Arsigny et al. 2006; smooth velocities give invertible fields.

    Args:
        velocity: (N, n, *grid), cells per unit of time.
        steps: The velocity is divided by 2 ** steps and the field squared as often.

    Returns:
        (N, n, *grid), cells.

    Raises:
        ValueError: `steps` is negative.
    """
    if steps < 0:
        raise ValueError(f"steps={steps} must be at least 0")
    flow = velocity / 2**steps
    for _ in range(steps):
        flow = compose(flow, flow)
    return flow


def resize_flow(flow: Tensor, factor: float) -> Tensor:
    """Resample a field to another resolution, with displacements in its cells.

    Args:
        flow: (N, n, *grid), cells.
        factor: Ratio of the new to the old number of cells; corner centers are aligned.

    Returns:
        (N, n, *grid), sides times `factor` rounded down.
    """
    size: Sequence[int] = [int(side * factor) for side in flow.shape[2:]]
    mode = _LINEAR[flow.ndim - 2]
    # scaled before enlarging and after shrinking, as in VoxelMorph, for equal rounding
    if factor > 1:
        return F.interpolate(flow * factor, size=size, mode=mode, align_corners=True)
    return F.interpolate(flow, size=size, mode=mode, align_corners=True) * factor


def jacobian_determinant(flow: Tensor) -> Tensor:
    """Determinant of the map from a cell to its displaced position, by central differences.

    Where it is not positive the map folds. MambaMorph's code passes its fields to ITK without
    reversing the components, the first of which is along the last axis in ITK, and so computes the
    determinant of another map: a field that folds everywhere counts as one that never does.

    Args:
        flow: (N, n, *grid), cells, two or more along every axis.

    Returns:
        (N, *grid).

    Raises:
        ValueError: An axis has a single cell.
    """
    axes = flow.shape[1]
    if min(flow.shape[2:]) < 2:
        raise ValueError(f"flow={tuple(flow.shape)} must have at least 2 cells along every axis")
    # rows: components; columns: axes along which they change
    gradients = torch.gradient(flow, dim=list(range(2, 2 + axes)))
    jacobian = torch.stack(gradients, dim=-1).movedim(1, -2)
    return torch.linalg.det(jacobian + torch.eye(axes, dtype=flow.dtype, device=flow.device))
