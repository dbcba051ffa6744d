"""The paths that a mixer follows: those of its scan order, or those that it is called with.

Sizes: N batch, C channels, K paths of T steps.
"""

import math

import torch
from torch import Tensor

from vimamba_kernels.arguments import check_given_paths


def choose_paths(x: Tensor, scan_order: str, num_paths: int, given: Tensor | None) -> Tensor:
    """Paths over the tokens of a map.

    Args:
        x: (N, *grid, C).
        scan_order: Used if no paths are given.
        num_paths: K.
        given: (K, T), or (N, K, T) with separate paths for every image.

    Returns:
        (K, T) or (N, K, T).

    Raises:
        TypeError: The given paths are not an integer tensor.
        ValueError: They have the wrong shape, leave the grid or repeat a token.
    """
    if given is None:
        return torch.ops.vimamba.scan_paths(x, scan_order)
    if not torch.jit.is_scripting():
        _check(x, num_paths, given)
    return given


def _check(x: Tensor, num_paths: int, given: Tensor) -> None:
    # programs that are being recorded would contain the check, for one example
    if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
        check_given_paths(given, x.shape[0], num_paths, math.prod(x.shape[1:-1]))
