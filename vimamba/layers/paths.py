"""What the models know about their path tables and the kernels cannot see without a delay.

A kernel that knows that every path visits every token clears nothing beforehand and skips nothing.
On a GPU that is not to be found out without waiting for it, but a scan order's table was looked at
on the CPU when it was made. And a kernel reads tokens in 32 bits, of which all tables of a scan
order share one copy.
"""

import torch
from torch import Tensor

from vimamba.scan_orders import grid_of, scan_paths, shared_paths, visits_all_cells
from vimamba_kernels.arguments import remember_paths


def scan_paths_known(
    like: Tensor, order: str, height: int | None = None, width: int | None = None
) -> Tensor:
    """The op `scan_paths` for a GPU: the table, with what the kernels should know about it.

    What is remembered ends with the tensor and with the first change of its values in place.
    """
    height, width = grid_of(like, height, width)
    # an inference tensor would not tell that it was changed
    with torch.inference_mode(False):
        paths = scan_paths(order, height, width, like.device)
        narrow = shared_paths(order, height, width, like.device, torch.int32)
    complete = visits_all_cells(order, height, width)
    remember_paths(paths, height * width, complete=complete, narrow=narrow)
    return paths


torch.library.register_kernel("vimamba::scan_paths", "cuda", scan_paths_known)
