"""Keeps frozen layers fixed: no updated statistics, no dropout, no drop path."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn


def frozen_layers(net: nn.Module, frozen: Collection[int], *, in_between: bool) -> list[nn.Module]:
    """The layers of a network that are completely frozen.

    These are the layers whose parameters are all frozen, and all layers inside them.

    Args:
        net: Network with its layers in the order of use.
        frozen: Ids of parameters.
        in_between: Include layers without parameters before the last frozen one, which affect the
            inputs of frozen layers: dropout between the stages of a frozen encoder.
    """
    layers = list(net.modules())
    held: dict[nn.Module, None] = {}
    last = -1
    for place, layer in enumerate(layers):
        ids = [id(parameter) for parameter in layer.parameters()]
        if ids and all(one in frozen for one in ids):
            held.update(dict.fromkeys(layer.modules()))
            last = place
    if in_between:
        idle = (layer for layer in layers[:last] if not any(True for _ in layer.parameters()))
        held.update(dict.fromkeys(idle))
    return list(held)


@contextmanager
def keep_modes(net: nn.Module) -> Iterator[None]:
    """Restore the training mode of every layer afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
