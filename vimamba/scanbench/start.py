"""The same initial weights for every scan order, wherever shapes agree.

An order's number of paths decides how many random numbers a mixer draws, so of two networks with
one seed all layers behind the first mixer would start otherwise. Therefore all orders take their
weights from one network, that of the model's own order. What has another shape there, as of more
or fewer paths, is drawn right after seeding, so that orders with as many paths share it, too.
"""

from typing import Any

import torch
from torch import nn


def start_alike(task: Any) -> float:
    """Give a task that is not trained yet weights that depend on the seed and on shapes alone.

    The generators of the caller are left as they were.

    Args:
        task: A `vimamba.tasks.Task`.

    Returns:
        The part of the network's parameters that all orders share, in [0, 1].
    """
    own, order_free = arguments_of(task), arguments_of(task)
    kwargs = dict(order_free.get("model_kwargs") or {})
    kwargs.pop("scan_order", None)
    order_free["model_kwargs"] = kwargs or None
    share = 1.0
    for arguments in (own, order_free):
        drawn = draw(type(task), arguments, task.seed)
        share = copy_alike(drawn, task.net)
        if task.average is not None:
            copy_alike(drawn, task.average.module)
    return share


def arguments_of(task: Any) -> dict[str, Any]:
    """What a task was made with."""
    return {key: value for key, value in task.hparams.items() if not str(key).startswith("_")}


def draw(task: type, arguments: dict[str, Any], seed: int) -> nn.Module:
    """The network of a task as it is made right after seeding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task(**arguments).net


def copy_alike(source: nn.Module, target: nn.Module) -> float:
    """Copy the parameters that have the same name and shape; returns their part of the target's."""
    theirs = dict(source.named_parameters())
    copied = total = 0
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            total += parameter.numel()
            other = theirs.get(name)
            if other is not None and other.shape == parameter.shape:
                parameter.copy_(other)
                copied += parameter.numel()
    return copied / max(total, 1)
