"""The selective scan as torch operators: choice of the backend, shapes, autograd and autocast.

`vimamba::selective_scan` is the one to call. It is composed of `selective_scan_forward`, which
returns besides the output what the backward pass needs, and whose gradient is the operator
`selective_scan_backward`. The gradient of that one, for second derivatives, goes through the
chunked form with every backend. So does all that torch.func and forward mode differentiate.

Sizes: B batch, K paths, L tokens, T steps, D channels, G groups of channels, N states.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels.backends import choose, cpu_obstacle, triton_obstacle
from vimamba_kernels.gates import gate_gradient
from vimamba_kernels.paths import saved_dtype
from vimamba_kernels.registration import (
    composed_gradients,
    dense_gradients,
    must_be_composed,
    nothing,
    register_autocast,
    register_vmap,
    second_gradients,
    without_autocast,
)
from vimamba_kernels.selective_scan import cpu, fused
from vimamba_kernels.selective_scan.checks import check_arguments
from vimamba_kernels.selective_scan.chunked import (
    linear_recurrence,
    selective_scan_chunked,
    selective_scan_gradients,
)
from vimamba_kernels.selective_scan.projection import project_gradients
from vimamba_kernels.selective_scan.reference import (
    linear_recurrence_loop,
    selective_scan_reference,
)

# the slowest last
BACKENDS = ("triton", "cpu", "chunked", "reference")

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D{0}, Tensor? z{0}, "
    "Tensor? delta_bias{0}, Tensor? delta_weight{0}, bool delta_softplus{1}, Tensor? paths{0}, "
    "bool merge{2}, str backend{3}"
)
_REQUIRED = _ARGUMENTS.format("", "", "", "")
_OPTIONAL = _ARGUMENTS.format("=None", "=False", "=True", '="auto"')
# positions of the tensors with a gradient in these arguments
_DIFFERENTIABLE = range(9)


def choose_backend(backend: str, u: Tensor) -> str:
    """The name of the backend that `backend`, the environment and `u` ask for; see `choose`."""
    return choose(backend, BACKENDS, lambda name: _obstacle(name, u))


def _obstacle(backend: str, u: Tensor) -> str | None:
    """Why a backend cannot run, or None."""
    if backend == "triton":
        return triton_obstacle("u", u)
    return cpu_obstacle("u", u) if backend == "cpu" else None


# those that consist of torch's own operators
_SCANS = {"chunked": selective_scan_chunked, "reference": selective_scan_reference}

_library = torch.library.Library("vimamba", "FRAGMENT")
_library.define(f"selective_scan({_OPTIONAL}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl(_library, "selective_scan", "CompositeImplicitAutograd")
def _selective_scan(
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
    paths: Tensor | None = None,
    merge: bool = True,
    backend: str = "auto",
) -> Tensor:
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    if must_be_composed(tensors):
        check_arguments(*tensors, paths)
        scan = _SCANS.get(choose_backend(backend, u), selective_scan_chunked)
        return scan(*tensors, delta_softplus, paths, merge)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return torch.ops.vimamba.selective_scan_forward(
        *tensors, delta_softplus, paths, merge, backend, save
    )[0]


@torch.library.custom_op(
    "vimamba::selective_scan_forward",
    mutates_args=(),
    schema=f"({_REQUIRED}, bool save) -> (Tensor, Tensor, Tensor)",
)
@without_autocast
def _forward(
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
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output; with `save` also the ungated output and the states at the chunk borders."""
    check_arguments(u, delta, A, B, C, D, z, delta_bias, delta_weight, paths)
    name = choose_backend(backend, u)
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    if name in _SCANS:
        out = _SCANS[name](*tensors, delta_softplus, paths, merge)
        return out, nothing(u, saved_dtype(u.dtype)), nothing(u, torch.float32)
    if name == "triton":
        return fused.forward(*tensors, delta_softplus, paths, merge, save=save)
    options = (delta_bias, delta_weight, delta_softplus, paths, merge)
    if z is None or not save:
        y, states = cpu.forward(u, delta, A, B, C, D, z, *options, save=save)
        return y.to(u.dtype), nothing(u, saved_dtype(u.dtype)), states
    y, states = cpu.forward(u, delta, A, B, C, D, None, *options, save=True)
    ungated = y.to(saved_dtype(u.dtype), copy=True)
    return y.mul_(_gate(z, merge)).to(u.dtype), ungated, states


@_forward.register_fake
def _forward_fake(
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
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, k, length), channels = delta.shape[:3], A.shape[1]
    shape = (batch, length, channels) if merge else (batch, k, length, channels)
    # a forced backend is not at hand on the meta device, where only the output's shape counts
    name = choose_backend(backend, u) if save and u.device.type != "meta" else None
    keep = name in ("triton", "cpu")
    sizes = (batch, k, length if paths is None else paths.shape[-1], A.shape[2], channels)
    states = (0,)
    if name == "cpu" or (name == "triton" and fused.saves_states(A.shape[2])):
        states = (cpu if name == "cpu" else fused).states_shape(*sizes)
    ungated = shape if keep and z is not None else (0,)
    return (
        torch.empty(shape, dtype=u.dtype, device=u.device),
        torch.empty(ungated, dtype=saved_dtype(u.dtype), device=u.device),
        torch.empty(states, dtype=torch.float32, device=u.device),
    )


def _gate(z: Tensor, merge: bool) -> Tensor:
    gate = F.silu(z.float())
    return gate if merge else gate.unsqueeze(1)


@torch.library.custom_op(
    "vimamba::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_REQUIRED}, Tensor ungated, Tensor states) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
@without_autocast
def _backward(
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
    backend: str,
    ungated: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the nine tensors in their order; those of absent ones are empty."""
    check_arguments(u, delta, A, B, C, D, z, delta_bias, delta_weight, paths)
    name = choose_backend(backend, u)
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    if name in _SCANS:
        # written out: below the autograd dispatch keys autograd itself is out of reach
        recurrence = linear_recurrence_loop if name == "reference" else linear_recurrence
        options = (delta_softplus, paths, merge)
        grads = selective_scan_gradients(grad, *tensors, *options, recurrence=recurrence)
        return dense_gradients(grads, tensors)
    if name == "triton":
        options = (delta_softplus, paths, merge)
        return dense_gradients(fused.backward(grad, *tensors, *options, ungated, states), tensors)
    options = (delta_bias, delta_weight, delta_softplus, paths, merge)
    if states.numel() == 0:
        y, states = cpu.forward(u, delta, A, B, C, D, None, *options, save=True)
        ungated = y if z is not None else ungated
    grad = grad.float()
    grad_z = None
    if z is not None:
        grad_z = gate_gradient(grad, z, ungated, merge)
        grad = grad * _gate(z, merge)
    grads = cpu.backward(grad, u, delta, A, B, C, D, *options, states)
    grad_u, grad_steps, *grads, grad_bias = grads
    assert grad_steps is not None
    grad_delta, grad_weight = project_gradients(grad_steps, delta, delta_weight)
    return dense_gradients((grad_u, grad_delta, *grads, grad_z, grad_bias, grad_weight), tensors)


@_backward.register_fake
def _backward_fake(
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
    backend: str,
    ungated: Tensor,
    states: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(
        nothing(u) if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for t in (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    )


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, ungated, states = output
    ctx.mark_non_differentiable(ungated, states)
    ctx.set_materialize_grads(False)
    *tensors, ctx.delta_softplus, paths, ctx.merge, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors, paths, ungated, states)


def _forward_gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    flags = (None,) * 5
    if grad is None:
        return (None,) * len(_DIFFERENTIABLE) + flags
    *tensors, paths, ungated, states = ctx.saved_tensors
    options = (ctx.delta_softplus, paths, ctx.merge, ctx.backend)
    if must_be_composed((grad,)):
        scan = partial(
            selective_scan_chunked,
            delta_softplus=ctx.delta_softplus,
            paths=paths,
            merge=ctx.merge,
        )
        return composed_gradients(scan, grad, tensors) + flags
    grads = torch.ops.vimamba.selective_scan_backward(grad, *tensors, *options, ungated, states)
    pairs = zip(grads, tensors, strict=True)
    return tuple(None if t is None else g for g, t in pairs) + flags


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    *tensors, ctx.delta_softplus, paths, ctx.merge, _, _, _ = inputs
    ctx.save_for_backward(*tensors, paths)


def _backward_gradient(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives: first ones through the chunked form, differentiated by autograd."""
    *tensors, paths = ctx.saved_tensors

    def scan(*inputs: Any) -> Tensor:
        arguments: Any = (*inputs, ctx.delta_softplus, paths, ctx.merge)
        return selective_scan_chunked(*arguments)

    return second_gradients(scan, tensors, cotangents) + (None,) * 6


_forward.register_autograd(_forward_gradient, setup_context=_forward_setup)
_backward.register_autograd(_backward_gradient, setup_context=_backward_setup)


# A, D and delta_bias keep their precision
register_autocast(_library, "selective_scan", ("u", "delta", "B", "C", "z", "delta_weight"))
register_vmap(_library, "selective_scan", ("u", "delta", "B", "C", "z"))
