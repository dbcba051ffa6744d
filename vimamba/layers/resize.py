"""Resizing of grids of one to three axes, by linear or nearest interpolation."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(
    x: Tensor,
    size: Sequence[int],
    *,
    mode: Literal["linear", "nearest"] = "linear",
    antialias: bool = False,
) -> Tensor:
    """Resize (N, C, *grid) to (N, C, *size) with aligned borders (`align_corners=False`).

    Args:
        x: A grid of one to three axes.
        size: Cells along each axis.
        mode: "linear" along each axis, or "nearest".
        antialias: Antialias when shrinking; for "linear" only.

    Raises:
        ValueError: `size` does not have as many axes as `x`, there are more than three, or
            `antialias` is used with "nearest".
    """
    axes = x.ndim - 2
    if axes not in _LINEAR or len(size) != axes:
        raise ValueError(f"size={tuple(size)} must be that of the {axes} axes of x, one to three")
    if mode == "nearest":
        if antialias:
            raise ValueError("antialias=True averages cells; it goes with mode='linear'")
        return F.interpolate(x, size=tuple(size), mode="nearest")
    if antialias:
        return _average(x, size)
    return F.interpolate(x, size=tuple(size), mode=_LINEAR[axes], align_corners=False)


def _average(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize with antialiasing."""
    if x.shape[2:] == tuple(size):
        return x
    if len(size) == 2:
        return F.interpolate(
            x, size=tuple(size), mode="bilinear", align_corners=False, antialias=True
        )
    # PyTorch antialiases images only: so one axis at a time, each as an image of one row
    for axis, cells in enumerate(size, start=2):
        line = x.movedim(axis, -1)
        shape = (*line.shape[:-1], cells)
        image = line.reshape(line.shape[0], -1, 1, line.shape[-1])
        shrunk = F.interpolate(
            image, size=(1, cells), mode="bilinear", align_corners=False, antialias=True
        )
        x = shrunk.reshape(shape).movedim(-1, axis)
    return x
