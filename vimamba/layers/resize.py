"""Resizing of grids of one to three axes, by linear interpolation or to the nearest cell."""

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
    """(N, C, *grid) at another size, (N, C, *size); the borders of both grids coincide.

    Args:
        x: A grid of one to three axes.
        size: Cells along each axis.
        mode: "linear" along each axis, or "nearest".
        antialias: Average what shrinks, as for images; for "linear" only.

    Raises:
        ValueError: `size` has not as many axes as `x`, there are more than three, or "nearest" is
            to average.
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
    """Resize with an average over what shrinks."""
    if x.shape[2:] == tuple(size):
        return x
    if len(size) == 2:
        return F.interpolate(
            x, size=tuple(size), mode="bilinear", align_corners=False, antialias=True
        )
    # PyTorch averages images only: axis after axis, each as an image of one row
    for axis, cells in enumerate(size, start=2):
        line = x.movedim(axis, -1)
        shape = (*line.shape[:-1], cells)
        image = line.reshape(line.shape[0], -1, 1, line.shape[-1])
        shrunk = F.interpolate(
            image, size=(1, cells), mode="bilinear", align_corners=False, antialias=True
        )
        x = shrunk.reshape(shape).movedim(-1, axis)
    return x
