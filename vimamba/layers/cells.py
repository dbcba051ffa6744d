"""Padding to whole cells and cropping, for networks that need multiples of a stride.

Zeros are added at the end of each axis, right and below, so that cells stay aligned with pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba.layers.tracing import decide_when_run


@decide_when_run
def pad_to_cells(x: Tensor, cell: list[int], fewest: int) -> Tensor:
    """Pad a grid (N, C, *grid) with zeros at the end of each axis to multiples of `cell`.

    Args:
        x: An image, a volume or a sequence: a grid of one to three axes.
        cell: Pixels per cell, for each axis.
        fewest: Minimum cells per side.
    """
    padding: list[int] = []
    for side, pixels in zip(x.shape[2:], cell):  # noqa: B905  TorchScript knows no `strict`
        padding = [0, max(-(-side // pixels), fewest) * pixels - side] + padding  # noqa: RUF005
    return F.pad(x, padding)


def crop(x: Tensor, size: Sequence[int], padded: Sequence[int]) -> Tensor:
    """Crop the padding from a network's output for a padded grid.

    Args:
        x: (N, C, *grid), at any resolution; a partly padded cell is kept.
        size: Pixels of the input along each axis, before padding.
        padded: The same after padding.
    """
    for axis, (wanted, whole) in enumerate(zip(size, padded, strict=True), start=2):
        kept = -(-wanted * x.shape[axis] // whole)
        if torch.compiler.is_exporting():
            # a view would be exported either only for whole cells or only for partial ones
            cells = torch.arange(kept, dtype=torch.int64, device=x.device)
            x = x.index_select(axis, cells)
        else:
            x = x.narrow(axis, 0, kept)
    return x
