"""What the operators share in registering with torch: gradients as outputs, autocast."""

from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.library import Library


def dense_gradients(grads: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> Any:
    """Gradients as an operator returns them: in their inputs' dtypes, empty where absent."""
    pairs = zip(grads, inputs, strict=True)
    empty = next(t for t in inputs if t is not None)
    return tuple(
        empty.new_empty(0) if t is None or g is None else g.to(t.dtype).contiguous()
        for g, t in pairs
    )


def without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel whose own matrix products keep the precision that it chose.

    The backward pass, and what a compiled graph calls, can run where autocast is on.
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
    """Gradients of an operator that itself computes the gradients of `function`.

    Args:
        function: Differentiable twice by autograd.
        tensors: The gradient of the function's output, then the function's arguments.
        cotangents: The gradients of the arguments' gradients; None where there is none.

    Returns:
        One gradient for each of `tensors`.
    """
    pairs = zip(tensors[1:], cotangents, strict=True)
    wanted = [i for i, (t, c) in enumerate(pairs) if t is not None and c is not None]
    if not wanted:
        return (None,) * len(tensors)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # new nodes, so that only what leads from these tensors to the gradients is walked
        nodes: list[Any] = [None if t is None else _node(t, again) for t in tensors]
        grad, *inputs = nodes
        out = function(*inputs)
        first = torch.autograd.grad(out, [inputs[i] for i in wanted], grad, create_graph=True)
        present = [t for t in nodes if t is not None]
        weights: list[Any] = [cotangents[i] for i in wanted]
        second = iter(
            torch.autograd.grad(first, present, weights, allow_unused=True, create_graph=again)
        )
    return tuple(None if t is None else next(second) for t in nodes)


def _node(t: Tensor, connected: bool) -> Tensor:
    """A new node of the graph, `connected` to that of `t` or cut from it."""
    if connected and t.requires_grad:
        return t.view_as(t)
    return t.detach().requires_grad_()


def register_autocast(library: Library, name: str, activations: Collection[str]) -> None:
    """Let autocast cast an operator's activations and nothing else.

    torch.library.register_autocast would cast every floating tensor, also those that decide
    about precision.

    Args:
        library: Fragment of the namespace `vimamba`.
        name: The operator in it.
        activations: Names of the arguments to cast; float64 is left alone.
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
