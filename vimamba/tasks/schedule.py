"""The learning rate as a function of steps, or of time: linear warm-up, then decay."""

import math
import time
from typing import Any

from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from vimamba.lightning import Trainer, callbacks
from vimamba.tasks.errors import TaskError
from vimamba.tasks.optim import Optimization


class Schedule(Scheduler):
    """Sets the learning rate at every step, over the length that the trainer plans.

    A resumed run takes its position from the checkpoint, and everything else from the current
    settings: the rate, the other settings of the optimizer, and the length, so more epochs make a
        longer schedule.

    Args:
        optimizer: Optimizer whose rates are set.
        optim: The settings.
        trainer: Trainer, which knows the number of steps.

    Attributes:
        steps: Steps of the whole training.
        warmup: Steps of the warm-up.
        steps_before: Steps of the whole training as planned before it was resumed.

    Raises:
        TaskError: The training has no end that the rate could fall toward.
    """

    def __init__(self, optimizer: Optimizer, optim: Optimization, trainer: Trainer) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self.optim = optim
        self.trainer = trainer
        self.settings = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        self.steps, self.warmup = plan_steps(trainer, optim)
        self.steps_before: float | None = None
        self.begun = time.monotonic()
        self.step_update(0)

    @property
    def seconds(self) -> float:
        """Duration of training, including the time before it was resumed."""
        return time.monotonic() - self.begun

    @property
    def is_over(self) -> bool:
        """Whether the time limit has passed."""
        minutes = self.optim.minutes
        return minutes is not None and self.seconds >= 60 * minutes

    def _get_lr(self, t: int) -> list[float]:
        return [self.rate(t, highest) for highest in self.base_values]

    def rate(self, step: int, highest: float) -> float:
        """The rate at a step, from 0."""
        optim = self.optim
        if step < self.warmup:
            return optim.warmup_lr + step * (highest - optim.warmup_lr) / self.warmup
        if optim.schedule == "constant":
            return highest
        part = step / self.steps
        if optim.minutes is not None:
            part = max(part, self.seconds / (60 * optim.minutes))
        done = min(part, 1)
        if optim.schedule == "cosine":
            left = (1 + math.cos(math.pi * done)) / 2
        else:
            left = (1 - done) ** optim.power
        return optim.min_lr + (highest - optim.min_lr) * left

    def state_dict(self) -> dict[str, Any]:
        """The length and the time taken; the position is in the trainer's state."""
        timed = {} if self.optim.minutes is None else {"seconds": self.seconds}
        return {"steps": self.steps, **timed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the trainer's step, with the current settings instead of the saved ones."""
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=True):
            group.update(settings)
        self.steps_before = state_dict.get("steps")
        self.begun = time.monotonic() - state_dict.get("seconds", 0.0)
        self.steps, self.warmup = plan_steps(self.trainer, self.optim)
        self.step_update(self.trainer.global_step)


def plan_steps(trainer: Trainer, optim: Optimization) -> tuple[float, int]:
    """The number of optimizer steps of a whole training, and of its warm-up.

    Raises:
        TaskError: The training has no end that the rate could fall toward.
    """
    steps, an_epoch = count_steps(trainer)
    if steps == math.inf and optim.schedule != "constant":
        raise TaskError(
            f"schedule={optim.schedule!r} falls until the end of training, which is not set: "
            "give max_epochs or max_steps, or use schedule='constant'"
        )
    return max(1, steps), round(min(optim.warmup_epochs * an_epoch, steps / 3))


def count_steps(trainer: Trainer) -> tuple[float, float]:
    """Optimizer steps of the whole training (infinity if it has no end) and of an epoch.

    Steps before a resumption count as they were done, even if an epoch has another length now.

    Raises:
        TaskError: There is not a single epoch to train.
    """
    epochs = trainer.max_epochs
    if epochs is None or epochs == 0 or epochs < -1:
        raise TaskError(f"max_epochs={epochs} must be at least 1, or -1 for no limit")
    if epochs == -1:  # Lightning needs no data to plan this
        trainer.fit_loop.setup_data()
    steps = trainer.estimated_stepping_batches
    steps = math.inf if steps < 0 else steps
    # infinity also for data of unknown length
    if getattr(trainer, "num_training_batches", math.inf) == math.inf:
        return steps, steps / max(epochs, 1)
    if epochs > 0:
        steps = _steps_before(trainer, epochs) + trainer.global_step - _steps_as_now(trainer)
        steps = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
    return steps, _steps_before(trainer, 1)


def _steps_before(trainer: Trainer, epochs: int) -> int:
    """Optimizer steps of `epochs` epochs of the current length."""
    batches = int(trainer.num_training_batches)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, callbacks.GradientAccumulationScheduler):
            each = [callback.get_accumulate_grad_batches(epoch) for epoch in range(epochs)]
            return sum(math.ceil(batches / summed) for summed in each)
    return epochs * math.ceil(batches / trainer.accumulate_grad_batches)


def _steps_as_now(trainer: Trainer) -> int:
    """Steps done so far, converted to epochs of the current length."""
    if trainer.global_step == 0:
        return 0
    progress: Any = trainer.fit_loop.epoch_progress.current
    within = 0
    if progress.processed < progress.started:
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        within = min(batches // trainer.accumulate_grad_batches, _steps_before(trainer, 1))
    return _steps_before(trainer, progress.processed) + within
