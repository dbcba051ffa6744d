"""Registration of the operators with torch: derivatives, vmap, autocast."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    peek_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.library import Library


def must_be_composed(tensors: Iterable[Tensor | None]) -> bool:
    """Whether derivatives are requested that only torch's own operators have.

    torch.library supports a backward pass, which the transforms of torch.func do not see, but no
    forward-mode derivative, which would silently be zero.
    """
    if peek_interpreter_stack() is None and forward_ad._current_level < 0:
        return False
    return any(t is not None and _is_transformed(t) for t in tensors)


def shortcut(operator: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A caller of an operator that skips torch's dispatch where only the kernel would run.

    Dispatching to a kernel in Python takes as long as scanning a small image.
    """

    def call(*arguments: Any) -> Any:
        tensors = [t for t in arguments if isinstance(t, Tensor)]
        return (kernel if _runs_only_kernel(tensors) else operator)(*arguments)

    return call


def runs_only_kernel(*tensors: Tensor | None) -> bool:
    """Whether a composed operator would only run its kernel, and nothing observes the call."""
    if (
        torch.compiler.is_compiling()
        or torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_function_stack()
        or torch.autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    ):
        return False
    return _runs_only_kernel([t for t in tensors if t is not None])


def _runs_only_kernel(tensors: Sequence[Tensor]) -> bool:
    """Whether neither gradients, subclasses, modes, transforms nor traces handle an operator."""
    if (
        torch._C._len_torch_dispatch_stack()
        or peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    ):
        return False
    wanted = torch.is_grad_enabled()
    for t in tensors:
        # autograd's own vmap, for many gradients at once, is not on the interpreters' stack
        if type(t) not in _PLAIN or t.is_meta or is_legacy_batchedtensor(t):
            return False
        if wanted and t.requires_grad:
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter)


def _is_transformed(t: Tensor) -> bool:
    return is_functorch_wrapped_tensor(t) or forward_ad.unpack_dual(t).tangent is not None


def dense_gradients(grads: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> Any:
    """Gradients as an operator returns them: in the dtypes of their inputs, empty if absent."""
    pairs = zip(grads, inputs, strict=True)
    like = next(t for t in inputs if t is not None)
    return tuple(
        nothing(like) if t is None or g is None else g.to(t.dtype).contiguous() for g, t in pairs
    )


def fake_gradients(inputs: Sequence[Tensor | None]) -> Any:
    """Tensors like those that `dense_gradients` returns, with any values."""
    like = next(t for t in inputs if t is not None)
    return tuple(
        nothing(like) if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for t in inputs
    )


def nothing(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The return value for a missing output of an operator, by default in the dtype of `like`.

    Does not use `like.new_empty`, which a tensor subclass may override.
    """
    return torch.empty((0,), dtype=dtype or like.dtype, device=like.device)


def without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel whose matrix products are not affected by autocast.

    The backward pass, and kernels called by a compiled graph, can run with autocast enabled.
    """
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    keys = keys | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    @wraps(kernel)
    def call(*arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return kernel(*arguments)

    return call


def second_gradients(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients of an operator that computes the gradients of `function`.

    Args:
        function: Differentiable twice by autograd.
        tensors: The gradient of the function's output, then the function's arguments.
        cotangents: The gradients of the arguments' gradients; None for absent ones.

    Returns:
        One gradient for each of `tensors`.
    """
    pairs = zip(tensors[1:], cotangents, strict=True)
    wanted = [i for i, (t, c) in enumerate(pairs) if t is not None and c is not None]
    if not wanted:
        return (None,) * len(tensors)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # new nodes, so that only the graph from these tensors to the gradients is traversed
        nodes = _nodes(tensors, again)
        grad, *inputs = nodes
        out = function(*inputs)
        first = torch.autograd.grad(out, [inputs[i] for i in wanted], grad, create_graph=True)
        present = [t for t in nodes if t is not None]
        weights: list[Any] = [cotangents[i] for i in wanted]
        second = iter(
            torch.autograd.grad(first, present, weights, allow_unused=True, create_graph=again)
        )
    return tuple(None if t is None else next(second) for t in nodes)


def composed_gradients(
    function: Callable[..., Tensor], grad: Tensor, tensors: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of `function` by autograd, with every derivative by `grad` that torch supports.

    Args:
        function: Differentiable by autograd.
        grad: The gradient of its output.
        tensors: Its arguments.

    Returns:
        One gradient for each of `tensors`; None for absent tensors.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        nodes = _nodes(tensors, again)
        present = [t for t in nodes if t is not None]
        out = function(*nodes)
        grads = iter(torch.autograd.grad(out, present, grad, create_graph=True))
    return tuple(None if t is None else next(grads) for t in nodes)


def joined(tensors: Sequence[Tensor | None]) -> Tensor:
    """The elements of all tensors that are given, concatenated, in at least float32."""
    present = [t for t in tensors if t is not None]
    wide = any(t.dtype == torch.float64 for t in present)
    return torch.cat([t.to(torch.float64 if wide else torch.float32).flatten() for t in present])


def parted(row: Tensor | None, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The inverse of `joined`: parts with the shapes and dtypes of the tensors."""
    if row is None:
        return (None,) * len(tensors)
    pieces = iter(row.split([t.numel() for t in tensors if t is not None]))
    return tuple(None if t is None else next(pieces).view_as(t).to(t.dtype) for t in tensors)


def _nodes(tensors: Sequence[Tensor | None], connected: bool) -> list[Any]:
    """New nodes of the graph, `connected` to those of the tensors or detached."""
    return [
        None
        if t is None
        else t.view_as(t)
        if connected and t.requires_grad
        else t.detach().requires_grad_()
        for t in tensors
    ]


def register_vmap(library: Library, name: str, by_batch: Collection[str]) -> None:
    """Let torch.vmap call an operator once for all samples.

    Args:
        library: Fragment of the namespace `vimamba`.
        name: The operator in it.
        by_batch: Arguments with a leading batch dimension, into which the samples are merged;
            `paths` may have one. If any other argument is mapped over, the operator is called once
            per sample.
    """
    operator = getattr(torch.ops.vimamba, name)
    names = [argument.name for argument in operator.default._schema.arguments]

    def call(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> Any:
        samples = info.batch_size
        mapped = [i for i, dim in enumerate(dims) if dim is not None]
        rows = list(arguments)
        for i in mapped:
            rows[i] = rows[i].movedim(dims[i], 0)
        if any(names[i] not in (*by_batch, "paths") for i in mapped):
            results = [
                operator(*[t[n] if i in mapped else t for i, t in enumerate(rows)])
                for n in range(samples)
            ]
            if isinstance(results[0], Tensor):
                return torch.stack(results), 0
            return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])
        batch = next(t.shape[i in mapped] for i, t in enumerate(rows) if names[i] in by_batch)
        for i, t in enumerate(rows):
            if t is None or names[i] not in (*by_batch, "paths"):
                continue
            by_sample = t if i in mapped else t.expand(samples, *t.shape)
            if names[i] == "paths" and by_sample.dim() == 3:
                # without a batch dimension: one table for all, or one per sample
                if i not in mapped:
                    continue
                by_sample = by_sample.unsqueeze(1).expand(-1, batch, -1, -1)
            rows[i] = by_sample.flatten(0, 1)
        found = operator(*rows)
        if isinstance(found, Tensor):
            return found.unflatten(0, (samples, -1)), 0
        return tuple(t.unflatten(0, (samples, -1)) for t in found), (0,) * len(found)

    torch.library.register_vmap(f"vimamba::{name}", call, lib=library)


def register_autocast(library: Library, name: str, activations: Collection[str]) -> None:
    """Let autocast cast an operator's activations and nothing else.

    torch.library.register_autocast would cast every floating tensor, including those that need
    full precision.

    Args:
        library: Fragment of the namespace `vimamba`.
        name: The operator in it.
        activations: Names of the arguments to cast; float64 is not cast.
    """
    operator = getattr(torch.ops.vimamba, name)
    names = [argument.name for argument in operator.default._schema.arguments]
    for key, device_type in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
        library.impl(name, _casting(operator, names, activations, key, device_type), key)


def _casting(
    operator: Callable[..., Any],
    names: Sequence[str],
    activations: Collection[str],
    key: str,
    device_type: str,
) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def call(*arguments: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)

        def cast(name: str, value: Any) -> Any:
            if name not in activations or value is None or value.dtype == torch.float64:
                return value
            return value.to(dtype)

        # trailing arguments with their default value are not passed
        pairs = zip(names, arguments, strict=False)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*[cast(name, value) for name, value in pairs])

    return call
