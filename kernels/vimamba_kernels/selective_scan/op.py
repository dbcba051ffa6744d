"""The selective scan as torch operators: choice of the backend, shapes, autograd and autocast.

`vimamba::selective_scan` is the one to call. It is composed of `selective_scan_forward`, which
also returns what the backward pass needs, and whose gradient is the operator
`selective_scan_backward`. The gradient of the latter, for second derivatives, uses the chunked form
with every backend, and so does everything that torch.func and forward mode differentiate.
`vimamba::selective_scan_with_state` starts from a given state and also returns the last state.

Sizes: B batch, K paths, L tokens, T steps, D channels, G groups of channels, N states.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vimamba_kernels.backends import choose, cpu_obstacle, triton_obstacle
from vimamba_kernels.paths import compute_dtype, saved_dtype
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
    runs_only_kernel,
    second_gradients,
    shortcut,
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

# slowest last
BACKENDS = ("triton", "cpu", "chunked", "reference")

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D{0}, Tensor? z{0}, "
    "Tensor? delta_bias{0}, Tensor? delta_weight{0}, bool delta_softplus{1}, Tensor? paths{0}, "
    "bool merge{2}, str backend{3}"
)
_REQUIRED = _ARGUMENTS.format("", "", "", "")
_OPTIONAL = _ARGUMENTS.format("=None", "=False", "=True", '="auto"')
# positions in these arguments of the tensors with a gradient
_DIFFERENTIABLE = range(9)
# what follows them in the operators of both directions
_STATE = "Tensor? initial_state=None"


def choose_backend(backend: str, u: Tensor) -> str:
    """The backend selected by `backend`, the environment and `u`; see `choose`."""
    return choose(backend, BACKENDS, lambda name: _obstacle(name, u))


def _obstacle(backend: str, u: Tensor) -> str | None:
    """Why a backend cannot run, or None."""
    if backend == "triton":
        return triton_obstacle("u", u)
    return cpu_obstacle("u", u) if backend == "cpu" else None


# those composed of torch's own operators
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
    return _compose(tensors, (delta_softplus, paths, merge), None, False, backend)[0]


_library.define(
    f"selective_scan_with_state({_OPTIONAL}, Tensor? initial_state=None) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "selective_scan_with_state", "CompositeImplicitAutograd")
def _selective_scan_with_state(
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
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output, and the state after the last step."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    return _compose(tensors, (delta_softplus, paths, merge), initial_state, True, backend)


def _compose(
    tensors: Sequence[Tensor | None],
    options: tuple[bool, Tensor | None, bool],
    initial_state: Tensor | None,
    return_state: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    differentiable = (*tensors, initial_state)
    if must_be_composed(differentiable):
        arguments: Any = (*tensors, *options, initial_state)
        checked: Any = (*tensors, options[1], initial_state)
        u = arguments[0]
        check_arguments(*checked)
        scan = _SCANS.get(choose_backend(backend, u), selective_scan_chunked)
        return scan(*arguments)
    wanted = any(t is not None and t.requires_grad for t in differentiable)
    save = torch.is_grad_enabled() and wanted
    y, _, _, state = _scan_forward(*tensors, *options, backend, save, initial_state, return_state)
    return y, state


@without_autocast
def _run_forward(
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
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output; with `save` also the ungated output and the states at the chunk boundaries.

    The last state follows if requested.
    """
    check_arguments(u, delta, A, B, C, D, z, delta_bias, delta_weight, paths, initial_state)
    name = choose_backend(backend, u)
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    if name in _SCANS:
        out, state = _SCANS[name](*tensors, delta_softplus, paths, merge, initial_state)
        state = state.contiguous() if return_state else nothing(state)
        return out, nothing(u, saved_dtype(u.dtype)), nothing(u, torch.float32), state
    first, last = _to_kernel_state(initial_state), None
    if return_state:
        last = _empty_kernel_state(delta, A)
    if name == "triton":
        options = (delta_softplus, paths, merge)
        saved = fused.forward(*tensors, *options, save=save, first=first, last=last)
        return *saved, _from_kernel_state(last, u)
    options = (delta_softplus, paths, merge)
    y, ungated, states = cpu.forward(*tensors, *options, save=save, first=first, last=last)
    dtype = saved_dtype(u.dtype)
    ungated = ungated.to(dtype) if save and z is not None else nothing(u, dtype)
    return y.to(u.dtype), ungated, states, _from_kernel_state(last, u)


def _to_kernel_state(state: Tensor | None) -> Tensor | None:
    """A state (B, K, D, N) in the layout of the kernels, (B, K, N, D) in float32."""
    if state is None:
        return None
    return state.detach().to(torch.float32).transpose(2, 3).contiguous()


def _empty_kernel_state(delta: Tensor, A: Tensor) -> Tensor:
    """Uninitialized memory for a state in the layout of the kernels."""
    shape = (*delta.shape[:2], A.shape[2], A.shape[1])
    return torch.empty(shape, dtype=torch.float32, device=delta.device)


def _from_kernel_state(state: Tensor | None, like: Tensor) -> Tensor:
    """A state from the layout of the kernels, (B, K, D, N); empty if None."""
    return nothing(like, torch.float32) if state is None else state.transpose(2, 3).contiguous()


_forward = torch.library.custom_op(
    "vimamba::selective_scan_forward",
    _run_forward,
    mutates_args=(),
    schema=f"({_REQUIRED}, bool save, {_STATE}, bool return_state=False) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
)
_scan_forward = shortcut(torch.ops.vimamba.selective_scan_forward, _run_forward)


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
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, k, length), channels = delta.shape[:3], A.shape[1]
    shape = (batch, length, channels) if merge else (batch, k, length, channels)
    # a forced backend is not available on the meta device, where only the output's shape matters
    name = choose_backend(backend, u) if save and u.device.type != "meta" else None
    keep = name in ("triton", "cpu")
    sizes = (batch, k, length if paths is None else paths.shape[-1], A.shape[2], channels)
    states = (0,)
    if name == "cpu" or (name == "triton" and fused.saves_states(A.shape[2])):
        states = (cpu if name == "cpu" else fused).states_shape(*sizes)
    ungated = shape if keep and z is not None else (0,)
    state = (batch, k, channels, A.shape[2]) if return_state else (0,)
    return (
        torch.empty(shape, dtype=u.dtype, device=u.device),
        torch.empty(ungated, dtype=saved_dtype(u.dtype), device=u.device),
        torch.empty(states, dtype=torch.float32, device=u.device),
        torch.empty(state, dtype=compute_dtype(u), device=u.device),
    )


@without_autocast
def _run_backward(
    grad: Tensor | None,
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
    initial_state: Tensor | None = None,
    grad_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the nine tensors in order and of the initial state; empty for absent tensors.

    `grad` and `grad_state` are those of the output and of the last state, None for zeros.
    """
    check_arguments(u, delta, A, B, C, D, z, delta_bias, delta_weight, paths, initial_state)
    name = choose_backend(backend, u)
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    everything = (*tensors, initial_state)
    if grad is None:
        paths_of = delta.shape[1:2] if not merge else ()
        shape = (delta.shape[0], *paths_of, delta.shape[2], A.shape[1])
        grad = torch.zeros(shape, dtype=u.dtype, device=u.device)
    if name in _SCANS:
        # written out, because autograd is not available below its dispatch keys
        recurrence = linear_recurrence_loop if name == "reference" else linear_recurrence
        options = (delta_softplus, paths, merge, initial_state)
        grads = selective_scan_gradients(
            grad, grad_state, *tensors, *options, recurrence=recurrence
        )
        return dense_gradients(grads, everything)
    first, after = _to_kernel_state(initial_state), _to_kernel_state(grad_state)
    before = None if initial_state is None else _empty_kernel_state(delta, A)
    ends: dict[str, Any] = {"grad_last": after, "grad_first": before}
    if name == "triton":
        options = (delta_softplus, paths, merge, ungated, states)
        grads = fused.backward(grad, *tensors, *options, first=first, **ends)
        return dense_gradients((*grads, _from_kernel_state(before, u)), everything)
    options = (delta_softplus, paths, merge)
    if states.numel() == 0:
        _, ungated, states = cpu.forward(*tensors, *options, save=True, first=first)
    grads = cpu.backward(grad, *tensors, *options, ungated, states, **ends)
    grad_u, grad_steps, *grads = grads
    assert grad_steps is not None
    grad_delta, grad_weight = project_gradients(grad_steps, delta, delta_weight)
    grads = (grad_u, grad_delta, *grads, grad_weight)
    return dense_gradients((*grads, _from_kernel_state(before, u)), everything)


_backward = torch.library.custom_op(
    "vimamba::selective_scan_backward",
    _run_backward,
    mutates_args=(),
    schema=f"(Tensor? grad, {_REQUIRED}, Tensor ungated, Tensor states, {_STATE}, "
    "Tensor? grad_state=None) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_scan_backward = shortcut(torch.ops.vimamba.selective_scan_backward, _run_backward)


@_backward.register_fake
def _backward_fake(
    grad: Tensor | None,
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
    initial_state: Tensor | None = None,
    grad_state: Tensor | None = None,
) -> tuple[Tensor, ...]:
    return fake_gradients((u, delta, A, B, C, D, z, delta_bias, delta_weight, initial_state))


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, ungated, states, last = output
    *arguments, _, initial_state, return_state = inputs
    ctx.mark_non_differentiable(ungated, states, *(() if return_state else (last,)))
    ctx.set_materialize_grads(False)
    *tensors, ctx.delta_softplus, paths, ctx.merge, ctx.backend = arguments
    ctx.save_for_backward(*tensors, initial_state, paths, ungated, states)


def _forward_gradient(
    ctx: Any, grad: Tensor | None, _ungated: Any, _states: Any, grad_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, initial_state, paths, ungated, states = ctx.saved_tensors
    options = (ctx.delta_softplus, paths, ctx.merge)
    everything = (*tensors, initial_state)
    grads: Any = (None,) * len(everything)
    if must_be_composed((grad, grad_state)):
        given, scan = _joined_outputs((grad, grad_state), *options)
        grads = composed_gradients(scan, given, everything)
    elif grad is not None or grad_state is not None:
        found = _scan_backward(
            grad, *tensors, *options, ctx.backend, ungated, states, initial_state, grad_state
        )
        pairs = zip(found, everything, strict=True)
        grads = tuple(None if t is None else g for g, t in pairs)
    # the flags, followed by the state
    return (*grads[:9], *(None,) * 5, grads[9], None)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    grad, *tensors, ctx.delta_softplus, paths, ctx.merge, _, _, _, initial, grad_state = inputs
    ctx.save_for_backward(grad, grad_state, *tensors, initial, paths)


def _backward_gradient(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives: autograd differentiates the gradients of the chunked form."""
    *grads_and_tensors, paths = ctx.saved_tensors
    grads, tensors = grads_and_tensors[:2], grads_and_tensors[2:]
    given, scan = _joined_outputs(grads, ctx.delta_softplus, paths, ctx.merge)
    first, *rest = second_gradients(scan, (given, *tensors), cotangents)
    grad, grad_state = parted(first, grads)
    return (grad, *rest[:9], *(None,) * 6, rest[9], grad_state)


def _joined_outputs(
    grads: Sequence[Tensor | None], delta_softplus: bool, paths: Tensor | None, merge: bool
) -> tuple[Tensor, Callable[..., Tensor]]:
    """The gradients that are given, and the scan that returns their outputs, concatenated."""
    wanted = [i for i, g in enumerate(grads) if g is not None]

    def scan(*inputs: Any) -> Tensor:
        *tensors, initial_state = inputs
        arguments: Any = (*tensors, delta_softplus, paths, merge, initial_state)
        outputs = selective_scan_chunked(*arguments)
        return joined([outputs[i] for i in wanted])

    return joined(grads), scan


_forward.register_autograd(_forward_gradient, setup_context=_forward_setup)
_backward.register_autograd(_backward_gradient, setup_context=_backward_setup)


# A, D, delta_bias and initial_state keep their precision
for _name, _state in (("selective_scan", ()), ("selective_scan_with_state", ("initial_state",))):
    register_autocast(_library, _name, ("u", "delta", "B", "C", "z", "delta_weight"))
    register_vmap(_library, _name, ("u", "delta", "B", "C", "z", *_state))


def scan_tokens(
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
) -> Tensor:
    """The operator with backend "auto", for layers: less overhead in inference; also scripted."""
    if not torch.jit.is_scripting():
        tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
        if runs_only_kernel(*tensors, paths):
            return _run_forward(*tensors, delta_softplus, paths, merge, "auto", False)[0]
    return torch.ops.vimamba.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_weight, delta_softplus, paths, merge, "auto"
    )
