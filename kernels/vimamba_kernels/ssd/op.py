"""Mamba-2's scan as a torch operator: choice of the backend and autocast.

The backends are composed of operators: torch's own, the selective scan on a CPU, and for the Triton
kernels `ssd_forward`, whose gradient is the operator `ssd_backward`. The gradient of the latter,
for second derivatives, uses the chunked form, and so does everything that torch.func and forward
mode differentiate. Autograd, shapes on meta tensors and export follow from these operators.

Sizes: B batch, K paths, L tokens, H heads of P channels, G groups of heads, N states.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vimamba_kernels.backends import choose, cpu_obstacle, triton_obstacle
from vimamba_kernels.registration import (
    composed_gradients,
    dense_gradients,
    fake_gradients,
    joined,
    must_be_composed,
    nothing,
    parted,
    register_autocast,
    register_vmap,
    second_gradients,
)
from vimamba_kernels.ssd import fused
from vimamba_kernels.ssd.checks import check_arguments
from vimamba_kernels.ssd.chunked import ssd_chunked
from vimamba_kernels.ssd.cpu import ssd_cpu
from vimamba_kernels.ssd.reference import ssd_reference

# slowest last
BACKENDS = ("triton", "cpu", "chunked", "reference")


def choose_backend(backend: str, x: Tensor, *, limited: bool = False, states: int = 1) -> str:
    """The backend selected by `backend`, the environment and `x`; see `choose`.

    Args:
        backend: A name of `BACKENDS` or "auto".
        x: The scan's input; its device and dtype matter.
        limited: Whether step sizes have limits.
        states: N.
    """
    return choose(backend, BACKENDS, lambda name: _obstacle(name, x, limited, states))


def _obstacle(backend: str, x: Tensor, limited: bool, states: int) -> str | None:
    """Why a backend cannot run, or None."""
    if backend == "triton":
        return triton_obstacle("x", x) or fused.obstacle(x.dtype, states)
    if backend != "cpu":
        return None
    if limited:
        return "it knows no dt_limit"
    return cpu_obstacle("x", x)


_library = torch.library.Library("vimamba", "FRAGMENT")
_library.define(
    "ssd(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, "
    "Tensor? dt_bias=None, bool dt_softplus=False, float[]? dt_limit=None, "
    "Tensor? initial_state=None, Tensor? paths=None, bool merge=True, "
    'bool return_state=False, str backend="auto") -> (Tensor, Tensor)',
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "ssd", "CompositeImplicitAutograd")
def _ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: list[float] | None = None,
    initial_state: Tensor | None = None,
    paths: Tensor | None = None,
    merge: bool = True,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The output, and the state after the last step, empty unless `return_state`."""
    check_arguments(x, dt, A, B, C, D, z, dt_bias, dt_limit, initial_state, paths)
    name = choose_backend(backend, x, limited=dt_limit is not None, states=B.shape[-1])
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    if name in ("triton", "cpu") and must_be_composed(tensors):
        name = "chunked"
    if name == "triton":
        return torch.ops.vimamba.ssd_forward(
            *tensors, dt_softplus, dt_limit, paths, merge, return_state
        )
    if name == "cpu":
        options = (dt_bias, dt_softplus, initial_state, paths, merge, return_state)
        return ssd_cpu(x, dt, A, B, C, D, z, *options)
    scan = ssd_reference if name == "reference" else ssd_chunked
    options = (dt_bias, dt_softplus, dt_limit, initial_state, paths, merge)
    y, state = scan(x, dt, A, B, C, D, z, *options)
    return y, state if return_state else nothing(state)


# A, D, dt_bias and initial_state keep their precision
register_autocast(_library, "ssd", ("x", "dt", "B", "C", "z"))
register_vmap(_library, "ssd", ("x", "dt", "B", "C", "z", "initial_state"))

_ARGUMENTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? initial_state, bool dt_softplus, float[]? dt_limit, Tensor? paths, bool merge"
)


@torch.library.custom_op(
    "vimamba::ssd_forward",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, bool return_state) -> (Tensor, Tensor)",
)
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_limit: list[float] | None,
    paths: Tensor | None,
    merge: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and the last state or empty, by the Triton kernels."""
    check_arguments(x, dt, A, B, C, D, z, dt_bias, dt_limit, initial_state, paths)
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    return fused.forward(*tensors, dt_softplus, dt_limit, paths, merge, return_state)


@_forward.register_fake
def _forward_fake(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_limit: list[float] | None,
    paths: Tensor | None,
    merge: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    batch, k, length, heads = dt.shape
    width = x.shape[-1]
    y = (batch, length, heads, width) if merge else (batch, k, length, heads, width)
    state = (batch, k, heads, width, B.shape[-1]) if return_state else (0,)
    return (
        torch.empty(y, dtype=x.dtype, device=x.device),
        torch.empty(state, dtype=torch.float32, device=x.device),
    )


@torch.library.custom_op(
    "vimamba::ssd_backward",
    mutates_args=(),
    schema=f"(Tensor? grad, Tensor? grad_state, {_ARGUMENTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_limit: list[float] | None,
    paths: Tensor | None,
    merge: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the nine tensors; empty for absent tensors."""
    check_arguments(x, dt, A, B, C, D, z, dt_bias, dt_limit, initial_state, paths)
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    grads = fused.backward(grad, grad_state, *tensors, dt_softplus, dt_limit, paths, merge)
    return dense_gradients(grads, tensors)


@_backward.register_fake
def _backward_fake(
    grad: Tensor | None, grad_state: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    return fake_gradients(arguments[:9])


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dt_softplus, ctx.dt_limit, paths, ctx.merge, return_state = inputs
    if not return_state:
        ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, paths)


def _forward_gradient(
    ctx: Any, grad: Tensor | None, grad_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, paths = ctx.saved_tensors
    flags = (None,) * 5
    if grad is None and grad_state is None:
        return (None,) * len(tensors) + flags
    options = (ctx.dt_softplus, ctx.dt_limit, paths, ctx.merge)
    if must_be_composed((grad, grad_state)):
        given, scan = _joined_outputs((grad, grad_state), *options)
        return composed_gradients(scan, given, tensors) + flags
    grads = torch.ops.vimamba.ssd_backward(grad, grad_state, *tensors, *options)
    pairs = zip(grads, tensors, strict=True)
    return tuple(None if t is None else g for g, t in pairs) + flags


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    *tensors, ctx.dt_softplus, ctx.dt_limit, paths, ctx.merge = inputs
    ctx.save_for_backward(*tensors, paths)


def _backward_gradient(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives: autograd differentiates the gradients of the chunked form."""
    *grads, x, dt, A, B, C, D, z, dt_bias, initial_state, paths = ctx.saved_tensors
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    options = (ctx.dt_softplus, ctx.dt_limit, paths, ctx.merge)
    joint, scan = _joined_outputs(grads, *options)
    first, *rest = second_gradients(scan, (joint, *tensors), cotangents)
    return (*parted(first, grads), *rest, None, None, None, None)


def _joined_outputs(
    grads: Sequence[Tensor | None],
    dt_softplus: bool,
    dt_limit: list[float] | None,
    paths: Tensor | None,
    merge: bool,
) -> tuple[Tensor, Callable[..., Tensor]]:
    """The gradients that are given, and the scan that returns their outputs, concatenated."""
    wanted = [i for i, g in enumerate(grads) if g is not None]

    def scan(*inputs: Any) -> Tensor:
        *others, initial = inputs
        options: Any = (dt_softplus, dt_limit, initial, paths, merge)
        outputs = ssd_chunked(*others, *options)
        return joined([outputs[i] for i in wanted])

    return joined(grads), scan


_forward.register_autograd(_forward_gradient, setup_context=_forward_setup)
_backward.register_autograd(_backward_gradient, setup_context=_backward_setup)
