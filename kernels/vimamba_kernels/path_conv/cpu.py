"""The convolution along paths on a CPU: drives the numba kernels of cpu_kernels.py.

A task is one batch element and one block of channels, forward also one path. Sums over the batch
are computed afterward, so results do not depend on the number of threads.

Sizes: B batch, K paths, L tokens, T steps, D channels, W taps.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vimamba_kernels.cpu_tasks import (
    VECTOR,
    Kernel,
    block_width,
    compile_kernel,
    flat,
    flat_paths,
    flat_rows,
    floats,
    run,
)

# steps whose tokens are gathered at once; they fit in the first-level cache
CHUNK = 32


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Tensor | None, activation: str | None
) -> Tensor:
    """The output, in the dtype of `x`; arguments as the op's.

    Raises:
        ValueError: `paths` is out of bounds.
    """
    conv = _prepare(x, weight, bias, paths)
    shape = (x.shape[0], weight.shape[0], *x.shape[1:])
    y = floats(*shape) if conv.visits_all else floats(*shape).zero_()
    tasks = conv.tasks * weight.shape[0]
    tensors = (*conv.inputs, conv.paths, y)
    width, taps = conv.width, weight.shape[-1]
    rows = ((CHUNK + taps - 1) * width, CHUNK * VECTOR, taps * width)
    numbers = (*conv.numbers, activation == "silu")
    team = min(torch.get_num_threads(), tasks)
    run(_kernel("conv_forward"), tensors, rows, numbers, tasks, team)
    return y.to(x.dtype)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias in float32; `grad` is that of the output.

    Raises:
        ValueError: `paths` is out of bounds.
    """
    conv = _prepare(x, weight, bias, paths)
    batch, _, channels = x.shape
    k, _, taps = weight.shape
    dx = floats(*x.shape)
    dweight, dbias = floats(batch, k, taps, channels), floats(batch, k, channels)
    tensors = (*conv.inputs, flat(grad), conv.paths, dx, dweight, dbias)
    width, tokens = conv.width, (CHUNK + taps - 1) * conv.width
    rows = (tokens, CHUNK * VECTOR, 2 * taps * width, tokens, (taps + 1) * width)
    numbers = (*conv.numbers, activation == "silu")
    team = min(torch.get_num_threads(), conv.tasks)
    run(_kernel("conv_backward"), tensors, rows, numbers, conv.tasks, team)
    return dx, dweight.sum(0).transpose(1, 2), dbias.sum(0)


class _Conv(NamedTuple):
    """Arguments of the kernels of both directions, and how the work is split."""

    inputs: tuple[Tensor, ...]
    paths: Tensor
    # sizes, and the strides of x and paths
    numbers: tuple[int, ...]
    # channels of a task, in whole vectors
    width: int
    tasks: int
    visits_all: bool


def _prepare(x: Tensor, weight: Tensor, bias: Tensor | None, paths: Tensor | None) -> _Conv:
    batch, length, channels = x.shape
    k, _, taps = weight.shape
    table = flat_paths(paths, length)
    steps = length if paths is None else paths.shape[-1]
    bias = floats(k, channels).zero_() if bias is None else bias
    width = block_width(channels, batch, torch.get_num_threads())
    x = flat_rows(x)
    sizes = (batch, k, length, steps, channels, 1, taps, width, CHUNK)
    return _Conv(
        inputs=(x, flat(weight), flat(bias)),
        paths=table.steps,
        numbers=(*sizes, *x.stride()[:2], *table.strides),
        width=width,
        tasks=batch * -(-channels // width),
        visits_all=table.complete,
    )


@cache
def _kernel(name: str) -> Kernel:
    return compile_kernel("vimamba_kernels.path_conv.cpu_kernels", name)
