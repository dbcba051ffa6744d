"""How the linear layers of most families start."""

from timm.layers import trunc_normal_
from torch import nn


def init_linear_(module: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)) -> None:
    """Start the linear layers inside a module alike, weights narrowly and biases at zero.

    Args:
        module: The module.
        kinds: Classes of the layers.
    """
    for layer in module.modules():
        if isinstance(layer, kinds):
            trunc_normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
