"""Mamba-3's scan as a torch operator: choice of the backend and autocast.

All backends are composed of operators that torch knows, but for the recurrence on a GPU: that is
`mamba3_forward`, whose gradient is the operator `mamba3_backward`. The gradient of that one, for
second derivatives, goes through the chunked form; so does all that torch.func and forward mode
differentiate.

Sizes: B batch, K paths, L tokens, T steps, H heads of P channels, N states.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vimamba_kernels.backends import choose, triton_obstacle
from vimamba_kernels.mamba3 import fused
from vimamba_kernels.mamba3.checks import Inputs, check_arguments
from vimamba_kernels.mamba3.chunked import Recurrence, mamba3_folded, recurrence_chunked
from vimamba_kernels.mamba3.reference import mamba3_reference
from vimamba_kernels.registration import (
    composed_gradients,
    dense_gradients,
    must_be_composed,
    nothing,
    register_autocast,
    register_vmap,
    second_gradients,
)

# the slowest last
BACKENDS = ("triton", "chunked", "reference")


def choose_backend(backend: str, x: Tensor, states: int) -> str:
    """The name of the backend that `backend`, the environment and `x` ask for; see `choose`.

    Args:
        backend: A name of `BACKENDS` or "auto".
        x: The scan's input; its device and dtype count.
        states: N.
    """

    def obstacle(name: str) -> str | None:
        if name != "triton":
            return None
        return triton_obstacle("x", x) or fused.obstacle(x.dtype, states)

    return choose(backend, BACKENDS, obstacle)


_library = torch.library.Library("vimamba", "FRAGMENT")
_library.define(
    "mamba3_scan(Tensor x, Tensor dt, Tensor log_decay, Tensor trap, Tensor B, Tensor C, "
    "Tensor angles, Tensor? D=None, Tensor? z=None, Tensor? B_bias=None, Tensor? C_bias=None, "
    "Tensor? mimo_x=None, Tensor? mimo_z=None, Tensor? mimo_o=None, Tensor? norm_weight=None, "
    "Tensor? initial_state=None, Tensor? initial_angle=None, Tensor? initial_b=None, "
    "Tensor? initial_x=None, float norm_eps=1e-5, Tensor? paths=None, bool merge=True, "
    'bool return_states=False, str backend="auto") -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "mamba3_scan", "CompositeImplicitAutograd")
def _mamba3_scan(
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    trap: Tensor,
    B: Tensor,
    C: Tensor,
    angles: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    B_bias: Tensor | None = None,
    C_bias: Tensor | None = None,
    mimo_x: Tensor | None = None,
    mimo_z: Tensor | None = None,
    mimo_o: Tensor | None = None,
    norm_weight: Tensor | None = None,
    initial_state: Tensor | None = None,
    initial_angle: Tensor | None = None,
    initial_b: Tensor | None = None,
    initial_x: Tensor | None = None,
    norm_eps: float = 1e-5,
    paths: Tensor | None = None,
    merge: bool = True,
    return_states: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """The output, and the four states after the last step, empty unless `return_states`."""
    weights = (D, z, B_bias, C_bias, mimo_x, mimo_z, mimo_o, norm_weight)
    initial = (initial_state, initial_angle, initial_b, initial_x)
    inputs = Inputs(x, dt, log_decay, trap, B, C, angles, *weights, *initial)
    check_arguments(inputs, paths)
    name = choose_backend(backend, x, B.shape[-1])
    options = (inputs, norm_eps, paths, merge)
    if name == "reference":
        y, *states = mamba3_reference(*options)
    elif name == "chunked" or must_be_composed(inputs):
        y, *states = mamba3_folded(*options)
    else:
        y, *states = mamba3_folded(*options, _recurrence_triton(x.dtype, return_states))
    return y, *(t if return_states else nothing(t) for t in states)


# what decides about angles and decays keeps its precision, as do the parameters and states
register_autocast(_library, "mamba3_scan", ("x", "B", "C", "z"))
register_vmap(_library, "mamba3_scan", (*Inputs._fields[:7], "z", *Inputs._fields[-4:]))


def _recurrence_triton(dtype: torch.dtype, return_state: bool) -> Recurrence:
    """The recurrence by the Triton kernels, which multiply matrices in a dtype."""

    def recurrence(
        x: Tensor, weight: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x, B, C = (t.to(dtype) for t in (x, B, C))
        return torch.ops.vimamba.mamba3_forward(x, weight, log_decay, B, C, first, return_state)

    return recurrence


_ARGUMENTS = "Tensor x, Tensor weight, Tensor log_decay, Tensor B, Tensor C, Tensor? first"


@torch.library.custom_op(
    "vimamba::mamba3_forward",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, bool return_state) -> (Tensor, Tensor)",
)
def _forward(
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """What `recurrence_chunked` computes, the state empty unless wanted."""
    return fused.forward(x, weight, log_decay, B, C, first, return_state)


@_forward.register_fake
def _forward_fake(
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    batch, k, _, heads, width = x.shape
    state = (batch, k, heads, width, B.shape[-1]) if return_state else (0,)
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(state, dtype=torch.float32, device=x.device),
    )


@torch.library.custom_op(
    "vimamba::mamba3_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor grad_state, {_ARGUMENTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor,
    grad_state: Tensor,
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six tensors, empty for an absent one; `grad_state` is empty for zeros."""
    tensors = (x, weight, log_decay, B, C, first)
    return dense_gradients(fused.backward(grad, grad_state, *tensors), tensors)


@_backward.register_fake
def _backward_fake(grad: Tensor, grad_state: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    return tuple(
        nothing(grad) if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for t in tensors
    )


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.return_state = inputs
    if not ctx.return_state:
        ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors)


def _forward_gradient(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grad_state = grad_state if ctx.return_state else nothing(grad)
    if must_be_composed((grad, grad_state)):
        joint, scan = _joined_outputs(grad, grad_state)
        return *composed_gradients(scan, joint, tensors), None
    grads = torch.ops.vimamba.mamba3_backward(grad, grad_state, *tensors)
    pairs = zip(grads, tensors, strict=True)
    return *(None if t is None else g for g, t in pairs), None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _backward_gradient(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives: first ones through the chunked form, differentiated by autograd."""
    grad, grad_state, *tensors = ctx.saved_tensors
    joint, scan = _joined_outputs(grad, grad_state)
    first, *rest = second_gradients(scan, (joint, *tensors), cotangents)
    if first is None:
        return None, None, *rest
    pieces = first.split([grad.numel(), grad_state.numel()])
    pairs = zip(pieces, (grad, grad_state), strict=True)
    return *(piece.view_as(g).to(g.dtype) for piece, g in pairs), *rest


def _joined_outputs(grad: Tensor, grad_state: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
    """The outputs' gradients in a row, and the recurrence with its outputs in a row likewise."""
    stateless = grad_state.numel() == 0

    def scan(*tensors: Any) -> Tensor:
        y, state = recurrence_chunked(*tensors)
        return _joined(y, nothing(state) if stateless else state)

    return _joined(grad, grad_state), scan


def _joined(y: Tensor, state: Tensor) -> Tensor:
    return torch.cat([t.to(torch.float32).flatten() for t in (y, state)])


_forward.register_autograd(_forward_gradient, setup_context=_forward_setup)
_backward.register_autograd(_backward_gradient, setup_context=_backward_setup)
