"""Launches the Triton kernels of several operators; gpu_kernels.py has their shared functions.

Sizes: K paths, L tokens, T steps.
"""

import importlib
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vimamba_kernels.arguments import check_path_bounds, narrow_paths

_ROWS = 1024
# elements of a gate per program
_GATE_BLOCK = 512


@cache
def kernel(name: str) -> Any:
    """A Triton kernel by module and name below this package; the first one imports Triton."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(f"vimamba_kernels.{module}"), function)


def launch(name: str, programs: int, *, warps: int, **arguments: Any) -> None:
    """Run a kernel, named as in `kernel`, with a number of programs, possibly 0."""
    run(kernel(name), programs, warps=warps, **arguments)


def run(function: Any, programs: int, *, warps: int, **arguments: Any) -> None:
    """Run a Triton kernel on the GPU of its tensors with a number of programs, possibly 0."""
    if programs > 0:
        with device_of(arguments.values()):
            # one stage: prefetching for matrix products would need too many registers
            function[(programs,)](**arguments, num_warps=warps, num_stages=1)


def device_of(arguments: Iterable[Any]) -> AbstractContextManager[Any]:
    """Make the GPU of the first tensor among `arguments` the current one.

    Triton launches on the current GPU and stream, even if the tensors are on another GPU.
    """
    device = next(value.device for value in arguments if isinstance(value, Tensor))
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 for other devices, where kernels are interpreted."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def prepare_paths(paths: Tensor | None, length: int) -> Tensor | None:
    """The table in int32, as the kernels expect.

    On a GPU its values are not read, because that would synchronize at every call.

    Raises:
        ValueError: A table in CPU memory is out of bounds.
    """
    if paths is None:
        return None
    if paths.device.type == "cpu":
        check_path_bounds(paths, length)
    return narrow_paths(paths, length)


def invert_paths(paths: Tensor | None, length: int) -> Tensor | None:
    """The step at which each path visits each token, -1 if never; None without paths.

    `paths` is (K, T) or (B, K, T), the result (K, L) or (B, K, L) int32.
    """
    if paths is None:
        return None
    *rows, steps = paths.shape
    inverse = torch.full((*rows, length), -1, dtype=torch.int32, device=paths.device)
    programs = math.prod(rows) * -(-steps // _ROWS)
    arguments = {"paths": paths, "inverse": inverse, "L": length, "T": steps, "ROWS": _ROWS}
    launch("gpu_kernels.invert_paths", programs, warps=4, **arguments)
    return inverse


def new_rows(
    like: Tensor, shape: Sequence[int], paths: Tensor | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Memory for rows by token; with paths, which may not visit all tokens, it is zero."""
    new = like.new_empty if paths is None else like.new_zeros
    return new(shape, dtype=dtype)


def gate_gradient(grad: Tensor, z: Tensor, ungated: Tensor) -> Tensor:
    """Gradient of the gate `z` (B, ...) of outputs multiplied by silu(z); all are contiguous.

    `grad` is that of the gated outputs and shaped as `ungated`: like `z`, or with the paths in
    dimension 1.
    """
    dz = torch.empty_like(z)
    size = math.prod(z.shape[1:])
    launch(
        "gpu_kernels.gate_backward",
        z.shape[0] * -(-size // _GATE_BLOCK),
        warps=1,
        grad=grad,
        ungated=ungated,
        z=z,
        dz=dz,
        K=grad.shape[1] if grad.dim() > z.dim() else 1,
        size=size,
        BLOCK=_GATE_BLOCK,
    )
    return dz


def is_shared(paths: Tensor | None) -> bool:
    """Whether all samples have the same paths."""
    return paths is None or paths.dim() == 2


def check_row_sizes(name: str, rows: int, width: int) -> None:
    """Check that 32-bit offsets in the kernels reach all elements of one path.

    Raises:
        ValueError: A path has too many elements.
    """
    if rows * width >= 2**31:
        raise ValueError(f"{name} has {rows} rows of {width} numbers; expected below 2**31")
