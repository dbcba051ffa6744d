"""Runs tokenwise layers on some tokens at a time, to stay within a CPU's cache.

At 1024 pixels the hidden activations of an MLP in VMamba's first stage take 100 MB. Processing all
tokens at once writes and reads them in main memory, in pages that the system has to clear first.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vimamba.layers.hooks import is_hooked

# elements in the tokens. An MLP's hidden activations are four times as many, 32 MB, which malloc
# requests from the system at every call
LARGE = 2**21


def slab_size(x: Tensor, layers: Sequence[nn.Module]) -> int:
    """Number of tokens of x (..., C) to process at once in an MLP; 0 for all of them.

    All of them if there are few, on other devices, in training, for derivatives, under tracing,
    export or hooks, and if tokens are not contiguous rows.

    Args:
        x: Tokens.
        layers: The layers, in order.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:
        return 0
    if x.device.type != "cpu" or x.numel() < LARGE or not x.is_contiguous():
        return 0
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return 0
    if peek_interpreter_stack() is not None or _get_current_dispatch_mode() is not None:
        return 0
    parts = (part for layer in layers for part in layer.modules())
    if any(part.training or is_hooked(part) for part in parts):
        return 0
    # every slab reads the weights again, 8 C * C elements, and has four times as many activations
    return 8 * x.shape[-1] * torch.get_num_threads()


def by_slabs(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """Apply `function` to x (..., C), `size` tokens at a time: the same shape."""
    y = torch.empty_like(x)
    pairs = zip(x.flatten(0, -2).split(size), y.flatten(0, -2).split(size), strict=True)
    for before, after in pairs:
        after.copy_(function(before))
    return y
