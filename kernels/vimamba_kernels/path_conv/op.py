"""The convolution along paths as torch operators: choice of the backend, autograd, autocast.

`vimamba::causal_conv_along_paths` is the one to call. It is composed of
`causal_conv_along_paths_forward`, whose gradient is the operator
`causal_conv_along_paths_backward`. The gradient of the latter, for second derivatives, uses the
reference with every backend, and so does everything that torch.func and forward mode differentiate.

Sizes: B batch, K paths, L tokens, T steps, D channels, W taps.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vimamba_kernels.backends import choose, cpu_obstacle, triton_obstacle
from vimamba_kernels.path_conv import cpu, fused
from vimamba_kernels.path_conv.checks import check_arguments
from vimamba_kernels.path_conv.reference import causal_conv_gradients, causal_conv_reference
from vimamba_kernels.registration import (
    composed_gradients,
    dense_gradients,
    fake_gradients,
    must_be_composed,
    register_autocast,
    register_vmap,
    runs_only_kernel,
    second_gradients,
    shortcut,
)

# slowest last
BACKENDS = ("triton", "cpu", "reference")

_FORWARD = {"triton": fused.forward, "cpu": cpu.forward, "reference": causal_conv_reference}
_BACKWARD = {"triton": fused.backward, "cpu": cpu.backward, "reference": causal_conv_gradients}


def choose_backend(backend: str, x: Tensor) -> str:
    """The backend selected by `backend`, the environment and `x`; see `choose`."""
    return choose(backend, BACKENDS, lambda name: _obstacle(name, x))


def _obstacle(backend: str, x: Tensor) -> str | None:
    """Why a backend cannot run, or None."""
    if backend == "triton":
        return triton_obstacle("x", x)
    return cpu_obstacle("x", x) if backend == "cpu" else None


_library = torch.library.Library("vimamba", "FRAGMENT")
_library.define(
    "causal_conv_along_paths(Tensor x, Tensor weight, Tensor? bias=None, Tensor? paths=None, "
    'str? activation=None, str backend="auto") -> Tensor',
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "causal_conv_along_paths", "CompositeImplicitAutograd")
def _causal_conv_along_paths(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    paths: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    if must_be_composed((x, weight, bias)):
        check_arguments(x, weight, bias, paths, activation)
        choose_backend(backend, x)
        return causal_conv_reference(x, weight, bias, paths, activation)
    return _conv_forward(x, weight, bias, paths, activation, backend)


def _run_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Tensor | None,
    activation: str | None,
    backend: str,
) -> Tensor:
    check_arguments(x, weight, bias, paths, activation)
    return _FORWARD[choose_backend(backend, x)](x, weight, bias, paths, activation)


_forward = torch.library.custom_op(
    "vimamba::causal_conv_along_paths_forward",
    _run_forward,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? paths, str? activation, "
    "str backend) -> Tensor",
)
_conv_forward = shortcut(torch.ops.vimamba.causal_conv_along_paths_forward, _run_forward)


@_forward.register_fake
def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Tensor | None,
    activation: str | None,
    backend: str,
) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[1:])
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def _run_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Tensor | None,
    activation: str | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty for an absent bias."""
    check_arguments(x, weight, bias, paths, activation)
    expected = (x.shape[0], weight.shape[0], *x.shape[1:])
    if grad.shape != expected:
        raise ValueError(f"grad has shape {tuple(grad.shape)}; expected (B, K, L, D) = {expected}")
    differentiate = _BACKWARD[choose_backend(backend, x)]
    grads = differentiate(grad, x, weight, bias, paths, activation)
    return dense_gradients(grads, (x, weight, bias))


_backward = torch.library.custom_op(
    "vimamba::causal_conv_along_paths_backward",
    _run_backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? paths, "
    "str? activation, str backend) -> (Tensor, Tensor, Tensor)",
)
_conv_backward = shortcut(torch.ops.vimamba.causal_conv_along_paths_backward, _run_backward)


@_backward.register_fake
def _backward_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients(arguments[:3])


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _forward_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, paths = ctx.saved_tensors
    if must_be_composed((grad,)):
        convolve = partial(causal_conv_reference, paths=paths, activation=ctx.activation)
        return (*composed_gradients(convolve, grad, (x, weight, bias)), None, None, None)
    arguments = (grad, x, weight, bias, paths, ctx.activation, ctx.backend)
    grad_x, grad_weight, grad_bias = _conv_backward(*arguments)
    return grad_x, grad_weight, None if bias is None else grad_bias, None, None, None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    *tensors, ctx.activation, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward_gradient(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, paths = ctx.saved_tensors

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return causal_conv_reference(x, weight, bias, paths, ctx.activation)

    return (*second_gradients(convolve, tensors, cotangents), None, None, None)


_forward.register_autograd(_forward_gradient, setup_context=_forward_setup)
_backward.register_autograd(_backward_gradient, setup_context=_backward_setup)

# weight and bias keep their precision
register_autocast(_library, "causal_conv_along_paths", ("x",))
register_vmap(_library, "causal_conv_along_paths", ("x",))


def convolve_tokens(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Tensor | None, activation: str | None
) -> Tensor:
    """The operator with backend "auto", for layers: less overhead in inference; also scripted."""
    if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips only this condition
        if runs_only_kernel(x, weight, bias, paths):
            return _run_forward(x, weight, bias, paths, activation, "auto")
    return torch.ops.vimamba.causal_conv_along_paths(x, weight, bias, paths, activation, "auto")
