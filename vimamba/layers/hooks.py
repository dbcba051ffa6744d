"""Detects hooks on a module."""

from torch import nn
from torch.nn.modules import module as _everywhere


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, so that calling it does more than its `forward`."""
    # written out: scans ask this for every layer they take the weight of
    return bool(
        "forward" in module.__dict__  # torch 2.7 does not compile vars()
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _everywhere._global_forward_hooks
        or _everywhere._global_forward_pre_hooks
        or _everywhere._global_backward_hooks
        or _everywhere._global_backward_pre_hooks
    )
