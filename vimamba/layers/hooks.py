"""Detects hooks on a module."""

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, so that calling it does more than its `forward`."""
    return (
        "forward" in module.__dict__  # torch 2.7 does not compile vars()
        or any(getattr(module, hooks) for hooks in _HOOKS)
        or any(getattr(nn.modules.module, f"_global{hooks}") for hooks in _HOOKS)
    )
