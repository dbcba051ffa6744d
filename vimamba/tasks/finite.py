"""Finds non-finite values in a loss, gradients or weights, and the first layer with them."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

# a loss scale below which lowering it further does not help; it starts at 65536
LOWEST_SCALE = 2.0**-10
WAY_OUT = (
    "a lower learning rate (--lr), --precision 32-true or bf16-mixed may help, and `vimamba "
    "doctor` shows the range of every layer"
)


def are_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether all values of this process are finite, as a tensor: reading it waits for the GPU."""
    local: list[Any] = [getattr(tensor, "to_local", lambda own=tensor: own)() for tensor in tensors]
    local = [tensor.detach() for tensor in local if tensor.is_floating_point() and tensor.numel()]
    if not local:
        return torch.tensor(True, dtype=torch.bool, device="cpu")
    return get_total_norm(local, norm_type=math.inf).isfinite()


def find_broken(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that is not finite."""
    return next((name for name, tensor in named if not are_finite([tensor])), None)


def find_layer(net: nn.Module, run: Callable[[], Any]) -> str | None:
    """The first layer whose output is not finite while something runs: its name and class."""
    names = {module: name for name, module in net.named_modules()}
    found: list[str] = []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        outputs = output if isinstance(output, list | tuple) else [output]
        tensors = [value for value in outputs if isinstance(value, Tensor)]
        if not found and module in names and not are_finite(tensors):
            found.append(f"{names[module] or 'the network'} ({type(module).__name__})")

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return found[0] if found else None
