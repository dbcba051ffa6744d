"""What the models know about their path tables and the kernels cannot see without a delay.

A kernel that knows that every path visits every token clears nothing beforehand and skips nothing.
On a GPU that is not to be found out without waiting for it, but a scan order's table was looked at
on the CPU when it was made.
"""

import torch
from torch import Tensor

from vimamba.scan_orders import grid_of, scan_paths, visits_all_cells
from vimamba_kernels.arguments import remember_complete


def scan_paths_known(
    like: Tensor, order: str, height: int | None = None, width: int | None = None
) -> Tensor:
    """The op `scan_paths` for a GPU: the table, remembered as complete where it is.

    What is remembered ends with the tensor and with the first change of its values in place.
    """
    height, width = grid_of(like, height, width)
    # an inference tensor would not tell that it was changed
    with torch.inference_mode(False):
        paths = scan_paths(order, height, width, like.device)
    if visits_all_cells(order, height, width):
        remember_complete(paths, height * width)
    return paths


torch.library.register_kernel("vimamba::scan_paths", "cuda", scan_paths_known)
