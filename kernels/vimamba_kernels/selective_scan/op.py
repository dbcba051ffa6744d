"""The selective scan as torch operators: choice of the backend, shapes, autograd and autocast.

`vimamba::selective_scan` is the one to call. It is composed of `selective_scan_forward`, which
returns besides the output what the backward pass needs, and whose gradient is the operator
`selective_scan_backward`. The gradient of that one, for second derivatives, goes through the
chunked form with every backend.

Sizes: B batch, K paths, L tokens, T steps, D channels, G groups of channels, N states.
"""

import importlib.util
import os
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels.selective_scan import cpu
from vimamba_kernels.selective_scan.chunked import (
    linear_recurrence,
    selective_scan_chunked,
    selective_scan_gradients,
)
from vimamba_kernels.selective_scan.reference import (
    linear_recurrence_loop,
    selective_scan_reference,
)

# the slowest last; a Triton backend goes first
BACKENDS = ("cpu", "chunked", "reference")

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D{0}, Tensor? z{0}, "
    "Tensor? delta_bias{0}, bool delta_softplus{1}, Tensor? paths{0}, bool merge{2}, str backend{3}"
)
_REQUIRED = _ARGUMENTS.format("", "", "", "")
_OPTIONAL = _ARGUMENTS.format("=None", "=False", "=True", '="auto"')
# positions of the tensors with a gradient in these arguments
_DIFFERENTIABLE = range(8)


def choose_backend(backend: str, u: Tensor) -> str:
    """The name of the backend that `backend`, the environment and `u` ask for.

    Args:
        backend: A name of `BACKENDS` or "auto": the environment variable VIMAMBA_BACKEND if it is
            set,
            otherwise the fastest that can run.
        u: The scan's input; its device and dtype count.

    Raises:
        ValueError: The name is unknown, or the backend that it forces cannot run.
    """
    source = "backend"
    if backend == "auto":
        backend, source = os.environ.get("VIMAMBA_BACKEND") or "auto", "VIMAMBA_BACKEND"
    if backend == "auto":
        return next(name for name in BACKENDS if _obstacle(name, u) is None)
    if backend not in BACKENDS:
        choices = ["auto", *BACKENDS]
        raise ValueError(f"{source}={backend!r} is unknown; choose from {choices}")
    if (obstacle := _obstacle(backend, u)) is not None:
        raise ValueError(
            f"{source}={backend!r} cannot run: {obstacle}; use 'chunked' or 'reference'"
        )
    return backend


def _obstacle(backend: str, u: Tensor) -> str | None:
    """Why a backend cannot run, or None."""
    if backend != "cpu":
        return None
    if u.device.type != "cpu":
        return f"u is on {u.device}; it runs on the CPU only"
    if u.dtype == torch.float64:
        return "u is float64; it computes in float32"
    return None if _numba_is_installed() else "numba is not installed"


@cache
def _numba_is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None


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
    delta_softplus: bool = False,
    paths: Tensor | None = None,
    merge: bool = True,
    backend: str = "auto",
) -> Tensor:
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return torch.ops.vimamba.selective_scan_forward(
        *tensors, delta_softplus, paths, merge, backend, save
    )[0]


@torch.library.custom_op(
    "vimamba::selective_scan_forward",
    mutates_args=(),
    schema=f"({_REQUIRED}, bool save) -> (Tensor, Tensor, Tensor)",
)
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output; with `save` also the ungated output and the states at the chunk borders."""
    name = choose_backend(backend, u)
    options = (delta_bias, delta_softplus, paths, merge)
    if name != "cpu":
        scan = selective_scan_reference if name == "reference" else selective_scan_chunked
        out = scan(u, delta, A, B, C, D, z, *options)
        return out, out.new_empty(0), out.new_empty(0, dtype=torch.float32)
    y, states = cpu.forward(u, delta, A, B, C, D, *options, save=save)
    ungated = y.to(u.dtype, copy=True) if save and z is not None else u.new_empty(0)
    if z is not None:
        y *= _gate(z, merge)
    return y.to(u.dtype), ungated, states


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
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, k, length, channels = delta.shape
    shape = (batch, length, channels) if merge else (batch, k, length, channels)
    # a forced backend is not at hand on the meta device, where only the output's shape counts
    keep = save and u.device.type != "meta" and choose_backend(backend, u) == "cpu"
    steps = length if paths is None else paths.shape[1]
    states = cpu.states_shape(batch, k, steps, A.shape[2], channels) if keep else (0,)
    return (
        u.new_empty(shape),
        u.new_empty(shape if keep and z is not None else (0,)),
        u.new_empty(states, dtype=torch.float32),
    )


def _gate(z: Tensor, merge: bool) -> Tensor:
    gate = F.silu(z.float())
    return gate if merge else gate.unsqueeze(1)


@torch.library.custom_op(
    "vimamba::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_REQUIRED}, Tensor ungated, Tensor states) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
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
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    backend: str,
    ungated: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias; those of absent ones are empty."""
    name = choose_backend(backend, u)
    options = (delta_bias, delta_softplus, paths, merge)
    if name != "cpu":
        # written out: below the autograd dispatch keys autograd itself is out of reach
        recurrence = linear_recurrence_loop if name == "reference" else linear_recurrence
        grads = selective_scan_gradients(
            grad, u, delta, A, B, C, D, z, *options, recurrence=recurrence
        )
        return _dense(grads, (u, delta, A, B, C, D, z, delta_bias))
    if states.numel() == 0:
        y, states = cpu.forward(u, delta, A, B, C, D, *options, save=True)
        ungated = y if z is not None else ungated
    grad = grad.float()
    grad_z = None
    if z is not None:
        grad_z = _gate_gradient(grad, z, ungated, merge)
        grad = grad * _gate(z, merge)
    *grads, grad_bias = cpu.backward(grad, u, delta, A, B, C, D, *options, states)
    return _dense((*grads, grad_z, grad_bias), (u, delta, A, B, C, D, z, delta_bias))


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
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    backend: str,
    ungated: Tensor,
    states: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(
        u.new_empty(0) if t is None else t.new_empty(t.shape)
        for t in (u, delta, A, B, C, D, z, delta_bias)
    )


def _gate_gradient(grad: Tensor, z: Tensor, ungated: Tensor, merge: bool) -> Tensor:
    z = z.float()
    sigmoid = torch.sigmoid(z)
    slope = sigmoid * (1 + z * (1 - sigmoid))
    product = grad * ungated.float()
    return (product if merge else product.sum(1)) * slope


def _dense(grads: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]) -> Any:
    """Gradients as the operator returns them: in their inputs' dtypes, empty where absent."""
    pairs = zip(grads, inputs, strict=True)
    empty = next(t for t in inputs if t is not None)
    return tuple(
        empty.new_empty(0) if t is None or g is None else g.to(t.dtype).contiguous()
        for g, t in pairs
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
    grads = torch.ops.vimamba.selective_scan_backward(grad, *tensors, *options, ungated, states)
    pairs = zip(grads, tensors, strict=True)
    return tuple(None if t is None else g for g, t in pairs) + flags


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    *tensors, ctx.delta_softplus, paths, ctx.merge, _, _, _ = inputs
    ctx.save_for_backward(*tensors, paths)


def _backward_gradient(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives: first ones through the chunked form, differentiated by autograd."""
    tensors: list[Any]
    *tensors, paths = ctx.saved_tensors
    flags = (None,) * 6
    pairs = zip(tensors[1:], cotangents, strict=True)
    wanted = [i for i, (t, c) in enumerate(pairs) if t is not None and c is not None]
    if not wanted:
        return (None,) * len(tensors) + flags
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # new nodes, so that only what leads from these tensors to the gradients is walked
        tensors = [None if t is None else _leaf(t, again) for t in tensors]
        grad, *inputs = tensors
        arguments: Any = (*inputs, ctx.delta_softplus, paths, ctx.merge)
        out = selective_scan_chunked(*arguments)
        first = torch.autograd.grad(out, [inputs[i] for i in wanted], grad, create_graph=True)
        present = [t for t in tensors if t is not None]
        weights: list[Any] = [cotangents[i] for i in wanted]
        second = iter(
            torch.autograd.grad(first, present, weights, allow_unused=True, create_graph=again)
        )
    return tuple(None if t is None else next(second) for t in tensors) + flags


def _leaf(t: Tensor, connected: bool) -> Tensor:
    """A new node of the graph, `connected` to that of `t` or cut from it."""
    if connected and t.requires_grad:
        return t.view_as(t)
    return t.detach().requires_grad_()


_forward.register_autograd(_forward_gradient, setup_context=_forward_setup)
_backward.register_autograd(_backward_gradient, setup_context=_backward_setup)


def _autocast(key: str, device_type: str) -> None:
    """Under autocast the activations are cast; A, D and delta_bias keep their precision.

    torch.library.register_autocast would cast every floating tensor, A too, so this does what it
    does.
    """
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def scan(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        *rest: Any,
    ) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)

        def cast(t: Tensor) -> Tensor:
            return t if t.dtype == torch.float64 else t.to(dtype)

        with torch._C._ExcludeDispatchKeyGuard(keys):
            z = None if z is None else cast(z)
            u, delta, B, C = cast(u), cast(delta), cast(B), cast(C)
            return torch.ops.vimamba.selective_scan(u, delta, A, B, C, D, z, *rest)

    _library.impl("selective_scan", scan, key)


_autocast("AutocastCPU", "cpu")
_autocast("AutocastCUDA", "cuda")
