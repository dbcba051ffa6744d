"""One step of the selective scan, for tokens that arrive one at a time.

Sizes: B batch, K paths, D channels, G groups of channels, N states, R rank.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from vimamba_kernels.arguments import expect_tensor
from vimamba_kernels.backends import cpu_obstacle
from vimamba_kernels.cpu_tasks import (
    ROW,
    Kernel,
    block_width,
    compile_kernel,
    flat,
    floats,
    run,
)
from vimamba_kernels.paths import compute_dtype
from vimamba_kernels.registration import must_be_composed
from vimamba_kernels.selective_scan.checks import check_arguments
from vimamba_kernels.selective_scan.projection import project_steps
from vimamba_kernels.selective_scan.reference import selective_scan_reference


def selective_scan_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_weight: Tensor | None = None,
    delta_softplus: bool = False,
    merge: bool = True,
) -> tuple[Tensor, Tensor]:
    """One step of `selective_scan`: from a token and the state before it to output and new state.

    The result is that of `selective_scan` for one token from `initial_state`; all K states take
    the same token. See there for details. On a CPU, a kernel reads and writes every state once.
    With a gradient, in float64 or on a GPU it is plain PyTorch, which autograd differentiates and
    torch.compile fuses.

    The given state is not modified: unlike Mamba's `selective_state_update`, this returns a new
    state, so two steps can start from the same one. For the rows of a larger cache, index it
    before and after.

    Args:
        state: (B, K, D, N), before the token.
        u: (B, D), shared by the paths, or (B, K, D).
        delta: (B, K, D), or its factor (B, K, R) with `delta_weight`.
        A: (K, D, N).
        B: (B, K, N), or (B, K, G, N) for G groups of D / G neighboring channels.
        C: Shaped as `B`.
        D: (K, D).
        z: (B, D).
        delta_bias: (K, D).
        delta_weight: (K, D, R).
        delta_softplus: Whether `delta` passes through softplus.
        merge: Whether to return the sum over the paths.

    Returns:
        The output, (B, D), or (B, K, D) without `merge`, in the dtype of `u`; and the state after
        the token, (B, K, D, N), float64 if `u` is and float32 otherwise.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: A shape or a device is wrong; messages show the token as a dimension of 1.
    """
    # before the operator, whose conversion of arguments fails with a RuntimeError
    required = ("state", state), ("u", u), ("delta", delta), ("A", A), ("B", B), ("C", C)
    for name, t in required:
        expect_tensor(name, t)
    options = (D, z, delta_bias, delta_weight, delta_softplus, merge)
    return torch.ops.vimamba.selective_scan_step(state, u, delta, A, B, C, *options)


_library = torch.library.Library("vimamba", "FRAGMENT")
_library.define(
    "selective_scan_step(Tensor state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor? D=None, Tensor? z=None, Tensor? delta_bias=None, Tensor? delta_weight=None, "
    "bool delta_softplus=False, bool merge=True) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "selective_scan_step", "CompositeImplicitAutograd")
def _selective_scan_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_weight: Tensor | None = None,
    delta_softplus: bool = False,
    merge: bool = True,
) -> tuple[Tensor, Tensor]:
    # as a sequence of one token
    u, delta, B, C = u.unsqueeze(-2), delta.unsqueeze(-2), B.unsqueeze(-2), C.unsqueeze(-2)
    z = None if z is None else z.unsqueeze(-2)
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    arguments: Any = (*tensors, None, state)
    check_arguments(*arguments, state_name="state")
    differentiable = (state, *tensors)
    wanted = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in differentiable
    )
    if wanted or must_be_composed(differentiable) or cpu_obstacle("u", u) is not None:
        arguments = (*tensors, delta_softplus, None, merge, state)
        y, state = selective_scan_reference(*arguments)
        return y.squeeze(-2), state
    steps = project_steps(delta, delta_weight)
    options = (D, z, delta_bias, delta_softplus, merge)
    y, state = torch.ops.vimamba.selective_scan_step_forward(state, u, steps, A, B, C, *options)
    return y.squeeze(-2), state


@torch.library.custom_op(
    "vimamba::selective_scan_step_forward",
    mutates_args=(),
    schema="(Tensor state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
    "Tensor? z, Tensor? delta_bias, bool delta_softplus, bool merge) -> (Tensor, Tensor)",
)
def _step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    merge: bool,
) -> tuple[Tensor, Tensor]:
    """By the numba kernel; all have a token dimension of 1, and `delta` is already projected."""
    batch, k, channels, n = state.shape
    groups = B.shape[2] if B.dim() == 5 else 1
    y = floats(*((batch, 1, channels) if merge else (batch, k, 1, channels)))
    new = floats(*state.shape)
    zeros = floats(k, channels).zero_() if D is None or delta_bias is None else None
    tensors = (state, u, delta, A, B, C, *(zeros if t is None else t for t in (D, delta_bias)))
    inputs = (*map(flat, tensors), None if z is None else flat(z))
    threads = torch.get_num_threads()
    width = block_width(channels // groups, batch * groups, threads)
    tasks = batch * groups * -(-(channels // groups) // width)
    shared, separate = (channels, 0), (k * channels, channels)
    strides = (separate if u.dim() == 4 else shared) + (shared if merge else separate)
    sizes = (batch, k, 1, 1, channels, groups, n, width)
    numbers = (*sizes, *strides, delta_softplus)
    run(_kernel(), (*inputs, y, new), (3 * ROW,), numbers, tasks, min(threads, tasks))
    return y.to(u.dtype), new


@_step.register_fake
def _step_fake(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    merge: bool,
) -> tuple[Tensor, Tensor]:
    batch, k, channels, _ = state.shape
    shape = (batch, 1, channels) if merge else (batch, k, 1, channels)
    return (
        torch.empty(shape, dtype=u.dtype, device=u.device),
        torch.empty(state.shape, dtype=compute_dtype(u), device=u.device),
    )


@cache
def _kernel() -> Kernel:
    return compile_kernel("vimamba_kernels.selective_scan.cpu_step", "step")
