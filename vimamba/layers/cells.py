"""Images of any size for networks that need whole cells: padding before, cropping after.

Zeros fill the image up at the end of each axis, right and below, so cells lie on pixels exactly.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba.layers.tracing import decide_when_run


@decide_when_run
def pad_to_cells(x: Tensor, cell: list[int], fewest: int) -> Tensor:
    """Zeros at the end of each axis of a grid (N, C, *grid), to whole cells of so many pixels.

    Args:
        x: An image, a volume or a sequence: a grid of one to three axes.
        cell: Pixels per cell, for each axis.
        fewest: Cells per side, at least.
    """
    padding: list[int] = []
    for side, pixels in zip(x.shape[2:], cell):  # noqa: B905  TorchScript knows no `strict`
        padding = [0, max(-(-side // pixels), fewest) * pixels - side] + padding  # noqa: RUF005
    return F.pad(x, padding)


def crop(x: Tensor, size: Sequence[int], padded: Sequence[int]) -> Tensor:
    """Leave the padding's share out of what a network made of a padded grid.

    Args:
        x: (N, C, *grid), finer, coarser or as fine as the input; a cell that is padded in part is
            kept.
        size: Pixels of the input along each axis, before it was padded.
        padded: Those after.
    """
    for axis, (wanted, whole) in enumerate(zip(size, padded, strict=True), start=2):
        kept = -(-wanted * x.shape[axis] // whole)
        if torch.compiler.is_exporting():
            # a view would be exported either for whole cells only or for no whole cells
            cells = torch.arange(kept, dtype=torch.int64, device=x.device)
            x = x.index_select(axis, cells)
        else:
            x = x.narrow(axis, 0, kept)
    return x
