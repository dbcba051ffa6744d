"""Mamba-3's scan as a torch operator: choice of the backend and autocast.

All backends are composed of torch's operators, except for two on a GPU: `mamba3_rotate` biases and
rotates B and C, `mamba3_forward` is the recurrence. Their gradients are operators, too, whose own
gradients, for second derivatives, use equivalents in PyTorch (by_token.py); torch.func and forward
mode use the chunked form.

Sizes: B batch, K paths, L tokens, T steps, H heads of P channels, N states.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from vimamba_kernels.backends import choose, triton_obstacle
from vimamba_kernels.mamba3 import fused
from vimamba_kernels.mamba3.by_token import (
    mamba3_by_token,
    recurrence_by_token,
    rotate_by_token,
)
from vimamba_kernels.mamba3.checks import Inputs, check_arguments
from vimamba_kernels.mamba3.chunked import mamba3_chunked
from vimamba_kernels.mamba3.reference import mamba3_reference
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

# slowest last
BACKENDS = ("triton", "chunked", "reference")


def choose_backend(backend: str, x: Tensor, states: int) -> str:
    """The backend selected by `backend`, the environment and `x`; see `choose`.

    Args:
        backend: A name of `BACKENDS` or "auto".
        x: The scan's input; its device and dtype matter.
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
        y, *states = mamba3_chunked(*options)
    else:
        y, *states = mamba3_by_token(*options, return_states)
    return y, *(t if return_states else nothing(t) for t in states)


# the inputs of angles and decays keep their precision, as do the parameters and states
register_autocast(_library, "mamba3_scan", ("x", "B", "C", "z"))
register_vmap(_library, "mamba3_scan", (*Inputs._fields[:7], "z", *Inputs._fields[-4:]))


_RECURRENCE = "Tensor x, Tensor weight, Tensor log_decay, Tensor B, Tensor C, Tensor? first"


@torch.library.custom_op(
    "vimamba::mamba3_forward",
    mutates_args=(),
    schema=f"({_RECURRENCE}, Tensor? paths, bool merge, bool return_state) -> (Tensor, Tensor)",
)
def _forward(
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
    merge: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """The results of `recurrence_by_token`; the state is empty unless requested."""
    return fused.forward(x, weight, log_decay, B, C, first, paths, merge, return_state)


@_forward.register_fake
def _forward_fake(
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
    merge: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    batch, k, length, heads = weight.shape
    width = x.shape[-1]
    y = (batch, length, heads, width) if merge else (batch, k, length, heads, width)
    state = (batch, k, heads, width, B.shape[-1]) if return_state else (0,)
    return (
        torch.empty(y, dtype=x.dtype, device=x.device),
        torch.empty(state, dtype=torch.float32, device=x.device),
    )


@torch.library.custom_op(
    "vimamba::mamba3_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor grad_state, {_RECURRENCE}, Tensor? paths, bool merge, "
    "bool return_state) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
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
    paths: Tensor | None,
    merge: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six tensors, empty for absent tensors."""
    tensors = (x, weight, log_decay, B, C, first)
    grads = fused.backward(grad, grad_state, *tensors, paths, merge)
    return dense_gradients(grads, tensors)


@_backward.register_fake
def _backward_fake(grad: Tensor, grad_state: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients(arguments[:6])


_ROTATION = (
    "Tensor B, Tensor C, Tensor? B_bias, Tensor? C_bias, Tensor angles, Tensor dt, Tensor? first"
)


@torch.library.custom_op(
    "vimamba::mamba3_rotate",
    mutates_args=(),
    schema=f"({_ROTATION}, Tensor? paths) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _rotate(
    B: Tensor,
    C: Tensor,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor,
    dt: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of `rotate_by_token`."""
    return fused.rotate(B, C, B_bias, C_bias, angles, dt, first, paths)


@_rotate.register_fake
def _rotate_fake(
    B: Tensor,
    C: Tensor,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor,
    dt: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, k, length, heads = dt.shape
    ranks = B.shape[3] if B.dim() == 6 else 1
    shape = (batch, k, length, ranks, heads, B.shape[-1])
    scores = (batch, k, length, heads, ranks, ranks)
    last = (batch, k, heads, angles.shape[-1])
    return (
        torch.empty(shape, dtype=B.dtype, device=B.device),
        torch.empty(shape, dtype=C.dtype, device=B.device),
        torch.empty(scores, dtype=torch.float32, device=B.device),
        torch.empty(last, dtype=torch.float32, device=B.device),
    )


@torch.library.custom_op(
    "vimamba::mamba3_rotate_backward",
    mutates_args=(),
    schema=f"(Tensor grad_b, Tensor grad_c, Tensor grad_scores, Tensor grad_last, {_ROTATION}, "
    "Tensor? paths) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _rotate_backward(
    grad_b: Tensor,
    grad_c: Tensor,
    grad_scores: Tensor,
    grad_last: Tensor,
    B: Tensor,
    C: Tensor,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor,
    dt: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of the seven tensors, empty for absent tensors."""
    tensors = (B, C, B_bias, C_bias, angles, dt, first)
    grads = fused.rotate_gradients(grad_b, grad_c, grad_scores, grad_last, *tensors, paths)
    return dense_gradients(grads, tensors)


@_rotate_backward.register_fake
def _rotate_backward_fake(
    grad_b: Tensor, grad_c: Tensor, grad_scores: Tensor, grad_last: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    return fake_gradients(arguments[:7])


def _register_gradients(
    forward: CustomOpDef,
    backward: CustomOpDef,
    composed: Callable[..., Any],
    *,
    count: int,
    outputs: int,
) -> None:
    """Register `backward` as the gradient of `forward`, and differentiate it by the composed form.

    Args:
        forward: Takes `count` tensors, a table of paths and other options.
        backward: Takes the gradients of the outputs, then what `forward` takes.
        composed: Computes what `forward` does, differentiable any number of times; an output that
            `forward` leaves empty has no gradient.
        count: Number of tensors.
        outputs: Number of outputs.
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options = inputs[count + 1 :]
        ctx.save_for_backward(*inputs[: count + 1])

    def gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, paths = ctx.saved_tensors
        options = (paths, *ctx.options)
        none = (None,) * len(options)
        if must_be_composed(grads):
            function = _joined_outputs(composed, grads, options)
            return *composed_gradients(function, joined(grads), tensors), *none
        found = backward(*grads, *tensors, *options)
        pairs = zip(found, tensors, strict=True)
        return *(None if t is None else g for g, t in pairs), *none

    def second_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        end = outputs + count + 1
        ctx.options = inputs[end:]
        ctx.save_for_backward(*inputs[:end])

    def second(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        *saved, paths = ctx.saved_tensors
        grads, tensors = saved[:-count], saved[-count:]
        options = (paths, *ctx.options)
        function = _joined_outputs(composed, grads, options)
        first, *rest = second_gradients(function, (joined(grads), *tensors), cotangents)
        none = (None,) * len(options)
        return *parted(first, grads), *rest, *none

    forward.register_autograd(gradient, setup_context=setup)
    backward.register_autograd(second, setup_context=second_setup)


def _joined_outputs(
    composed: Callable[..., Any], grads: Sequence[Tensor], options: tuple[Any, ...]
) -> Callable[..., Tensor]:
    """The composed form, with all outputs that have a gradient concatenated."""

    def function(*tensors: Any) -> Tensor:
        outputs = composed(*tensors, *options)
        return joined([y for y, g in zip(outputs, grads, strict=True) if g.numel()])

    return function


def _composed_recurrence(*arguments: Any) -> tuple[Tensor, Tensor]:
    *others, _return_state = arguments
    return recurrence_by_token(*others)


_register_gradients(_forward, _backward, _composed_recurrence, count=6, outputs=2)
_register_gradients(_rotate, _rotate_backward, rotate_by_token, count=7, outputs=4)
