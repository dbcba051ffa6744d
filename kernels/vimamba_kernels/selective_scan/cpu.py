"""The selective scan on a CPU: drives the numba kernels of cpu_forward.py and cpu_backward.py.

A task is one batch element and one block of channels. Sums across tasks are computed afterward in a
fixed order, so results do not depend on the number of threads.

Sizes: B batch, K paths, L tokens, T steps, D channels, G groups of channels, N states.
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

# steps between saved states: these take N / 32 of delta's memory, and a chunk's states fit in L2
CHUNK = 32


def states_shape(batch: int, k: int, steps: int, states: int, channels: int) -> tuple[int, ...]:
    """Shape of the states that `forward` saves; sizes may be symbolic."""
    # flat: a number of chunks as a dimension would make torch.compile ask whether it is 1
    return (batch * k * ((steps + CHUNK - 1) // CHUNK) * states * channels,)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    *,
    save: bool,
    first: Tensor | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output and the output before the gate, in float32; with `save`, the states before chunks.

    The arguments are the op's. Without `save`, or without a gate, both outputs are one tensor.
    `first` is the initial state, (B, K, N, D) in float32; `last`, of the same shape, receives the
    state after the last step.

    Raises:
        ValueError: `paths` is out of bounds.
    """
    threads = torch.get_num_threads()
    scan = _prepare(u, delta, A, B, C, D, delta_bias, delta_weight, paths, merge, threads)
    batch, k, length, channels = *delta.shape[:3], A.shape[1]
    y = floats(*((batch, length, channels) if merge else (batch, k, length, channels)))
    shape = states_shape(batch, k, scan.steps, A.shape[2], channels) if save else (0,)
    states = floats(*shape)
    gated, of_z = y, (0, 0)
    if z is not None:
        z = flat_rows(z)
        of_z = z.stride()[:2]
        gated = floats(*y.shape) if save else y
    tensors = (*scan.inputs, z, first, scan.paths, y, gated, states, last)
    n, width = A.shape[2], scan.width
    rows = (3 * VECTOR * CHUNK, 2 * n * CHUNK, 2 * n * width, scan.constants)
    numbers = scan.numbers(of_z, delta_softplus)
    run(_kernel("forward"), tensors, rows, numbers, scan.tasks, min(threads, scan.tasks))
    return gated, y, states


def backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    ungated: Tensor,
    states: Tensor,
    *,
    grad_last: Tensor | None = None,
    grad_first: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias in float32; None for absent arguments.

    The gradient of delta is (B, K, L, D): with `delta_weight` it is that of the product. `ungated`
    (read with z only) and `states` are what `forward` saved. `grad_last` is the gradient of the
    last state, (B, K, N, D) in float32; `grad_first`, of the same shape, receives
    that of the first state.

    Raises:
        ValueError: `paths` is out of bounds, or `states` does not belong to these arguments.
    """
    # two for any number of threads: dB and dC are sums over blocks, which must not depend on it
    scan = _prepare(u, delta, A, B, C, D, delta_bias, delta_weight, paths, merge, threads=2)
    batch, k, length, channels = *delta.shape[:3], A.shape[1]
    n, width = A.shape[2], scan.width
    expected = (batch, length, channels) if merge else (batch, k, length, channels)
    saved = states_shape(batch, k, scan.steps, n, channels)
    if tuple(grad.shape) != expected or tuple(states.shape) != saved:
        shapes = tuple(grad.shape), tuple(states.shape)
        raise ValueError(f"grad and states have shapes {shapes}; expected {(expected, saved)}")
    du, ddelta = floats(*u.shape), floats(batch, k, length, channels)
    dA = floats(batch, k, n, channels)
    dB, dC = floats(scan.blocks, *B.shape), floats(scan.blocks, *C.shape)
    dD, dbias = floats(batch, k, channels), floats(batch, k, channels)
    team = min(torch.get_num_threads(), scan.tasks)
    grad, grad_z, of_z = flat(grad), None, (0, 0)
    gate: tuple[Tensor | None, ...] = (None, None, None)
    grad_y = grad
    if z is not None:
        grad_z, grad_y = floats(*z.shape), floats(*grad.shape)
        z = flat_rows(z)
        of_z = z.stride()[:2]
        gate = (z, flat(ungated), grad)
    inputs = (*scan.inputs, states, grad_y, grad_last, *gate)
    gradients = (du, ddelta, dA, dB, dC, dD, dbias, grad_first, grad_z)
    tensors = (*inputs, scan.paths, *gradients)
    # states and decays, or gradients of B and C, of four states
    slots = 8 * VECTOR * (CHUNK + 1)
    rows = (
        6 * width * CHUNK,
        2 * n * CHUNK,
        3 * n * width,
        scan.constants,
        2 * width,
        slots,
        slots,
    )
    numbers = scan.numbers(of_z, delta_softplus)
    run(_kernel("backward"), tensors, rows, numbers, scan.tasks, team)
    return (
        du,
        ddelta,
        dA.sum(0).transpose(1, 2),
        dB.sum(0),
        dC.sum(0),
        None if D is None else dD.sum(0),
        grad_z,
        None if delta_bias is None else dbias.sum(0),
    )


class _Scan(NamedTuple):
    """Arguments of the kernels of both directions, and how the work is split."""

    inputs: tuple[Tensor | None, ...]
    paths: Tensor
    sizes: tuple[int, ...]
    # of u, delta, B and C
    read_strides: tuple[int, ...]
    # of y and paths
    write_strides: tuple[int, ...]
    steps: int
    visits_all: bool
    # channels of a task, in whole vectors
    width: int
    # floats of bias, skip and the projection's weights of these channels
    constants: int
    # blocks of channels in a group, and total number of tasks
    blocks: int
    tasks: int

    def numbers(self, of_z: tuple[int, ...], softplus: bool) -> tuple[int, ...]:
        """The values that follow the arrays in a kernel's frame."""
        strides = (*self.read_strides, *of_z, *self.write_strides)
        return (*self.sizes, *strides, softplus, self.visits_all)


def _prepare(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    paths: Tensor | None,
    merge: bool,
    threads: int,
) -> _Scan:
    batch, k, length, rank = delta.shape
    _, channels, n = A.shape
    grouped = B.dim() == 5
    groups = B.shape[2] if grouped else 1
    table = flat_paths(paths, length)
    steps = length if paths is None else paths.shape[-1]
    zeros = floats(k, channels).zero_() if D is None or delta_bias is None else None
    if delta_weight is None:
        rank = 0
    else:
        delta_weight = flat(delta_weight)
    D = zeros if D is None else flat(D)
    bias = zeros if delta_bias is None else flat(delta_bias)
    delta, B, C = flat_rows(delta), flat_rows(B), flat_rows(C)
    of_delta, of_B, of_C = delta.stride()[:3], B.stride()[:-1], C.stride()[:-1]
    if not grouped:
        of_B, of_C = (*of_B[:2], 0, of_B[2]), (*of_C[:2], 0, of_C[2])
    width = block_width(channels // groups, batch * groups, threads)
    blocks = -(-(channels // groups) // width)
    shared, separate = (length * channels, 0), (k * length * channels, length * channels)
    return _Scan(
        inputs=(flat(u), delta, flat(A), B, C, D, bias, delta_weight),
        paths=table.steps,
        sizes=(batch, k, length, steps, channels, groups, n, width, CHUNK, rank),
        read_strides=((separate if u.dim() == 4 else shared) + of_delta + of_B + of_C),
        write_strides=(shared if merge else separate) + table.strides,
        steps=steps,
        visits_all=table.complete,
        width=width,
        constants=(rank + 2) * width,
        blocks=blocks,
        tasks=batch * groups * blocks,
    )


@cache
def _kernel(direction: str) -> Kernel:
    return compile_kernel(f"vimamba_kernels.selective_scan.cpu_{direction}", direction)
