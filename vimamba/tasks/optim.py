"""Settings of the optimizer and the learning rate."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

import timm.optim

from vimamba.tasks.errors import TaskError

Fall = Literal["cosine", "poly", "constant"]


@dataclass(frozen=True)
class Optimization:
    """Optimizer and learning-rate schedule, set at every step after a linear warm-up.

    Attributes:
        opt: timm optimizer name.
        lr: Highest learning rate.
        weight_decay: Weight decay of the parameters that the model does not exempt.
        layer_decay: Factor of the learning rate from one layer to the layer below it.
        schedule: How the rate falls after the warm-up, until the last step: as a cosine, as a power
            of the remaining fraction of training ("poly"), or not at all.
        power: Exponent of "poly".
        warmup_epochs: Length of the warm-up, at most a third of the training.
        warmup_lr: Learning rate at the start of the warm-up.
        min_lr: Learning rate at the end of the schedule.
        ema: Decay of a running average of the weights, which is then scored and exported.
        freeze_epochs: Number of first epochs in which only the classifier or the decoder is
            trained; the pretrained part is frozen, including its statistics, and its dropout is
            off.
        minutes: Length of training in minutes: the rate falls with time instead of steps, and
            training ends when they are over, or after `max_epochs`. The end is then predictable
            even on a shared machine, but runs are no longer reproducible bit for bit.
    """

    opt: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float | None = None
    schedule: Fall = "cosine"
    power: float = 1.0
    warmup_epochs: float = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    ema: float | None = None
    freeze_epochs: int = 0
    minutes: float | None = None


DEFAULT_OPTIMIZATION = Optimization()


def check_optimization(optim: Optimization) -> None:
    """Fail on an invalid setting.

    Raises:
        TaskError: Names the setting.
    """
    known = [str(name) for name in timm.optim.list_optimizers()]
    if optim.opt not in known:
        near = get_close_matches(optim.opt, known, n=4, cutoff=0.3)
        hint = f"close names are {', '.join(near)}" if near else "adamw, sgd and lion are some"
        raise TaskError(f"optim.opt={optim.opt!r} is unknown; {hint}")
    if optim.schedule not in get_args(Fall):
        raise TaskError(f"optim.schedule={optim.schedule!r} must be one of {get_args(Fall)}")
    if not optim.lr > 0:
        raise TaskError(f"optim.lr={optim.lr} must be above 0")
    if optim.layer_decay is not None and not 0 < optim.layer_decay <= 1:
        raise TaskError(f"optim.layer_decay={optim.layer_decay} must lie in (0, 1]")
    if optim.ema is not None and not 0 <= optim.ema < 1:
        raise TaskError(f"optim.ema={optim.ema} must lie in [0, 1)")
    if optim.minutes is not None and not optim.minutes > 0:
        raise TaskError(f"optim.minutes={optim.minutes} must be above 0")
    for name in ("weight_decay", "power", "warmup_epochs", "warmup_lr", "min_lr", "freeze_epochs"):
        if not getattr(optim, name) >= 0:
            raise TaskError(f"optim.{name}={getattr(optim, name)} must be at least 0")
