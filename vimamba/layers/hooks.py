"""Whether a module, when called, does more than its own `forward`."""

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody looks at or changes what goes in and out of a module."""
    return (
        "forward" in vars(module)
        or any(getattr(module, hooks) for hooks in _HOOKS)
        or any(getattr(nn.modules.module, f"_global{hooks}") for hooks in _HOOKS)
    )
