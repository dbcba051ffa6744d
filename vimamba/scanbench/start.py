"""The same initial weights for every scan order, wherever shapes agree.

An order's number of paths decides how many random numbers a mixer draws, so of two networks with
one seed all layers behind the first mixer would start otherwise. Therefore all orders take their
weights from one network: that of the model's own order.
"""

from typing import Any

import torch
from torch import nn


def start_alike(task: Any) -> float:
    """Give a task that is not trained yet the weights of the same task with the model's own order.

    They are a function of the model, its arguments and the seed; the generators of the caller are
    left as they were. Parameters of another shape, as of more or fewer paths, stay as they are.

    Args:
        task: A `vimamba.tasks.Task`.

    Returns:
        The part of the network's parameters that the others share, in [0, 1].
    """
    arguments = dict(task.hparams)
    model_kwargs = dict(arguments.get("model_kwargs") or {})
    model_kwargs.pop("scan_order", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        reference = type(task)(**{**arguments, "model_kwargs": model_kwargs or None}).net
    share = copy_alike(reference, task.net)
    if task.average is not None:
        copy_alike(reference, task.average.module)
    return share


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
