"""Looks for a learning rate: the loss while the rate rises from step to step.

The test of Smith (arXiv:1506.01186, section 3.3). Lightning's `Tuner.lr_find` does the same for a
training of your own; it gives all layers one rate, where `layer_decay` means several.
"""

import signal
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from vimamba.lightning import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    TrainerStatus,
    isolate_rng,
)
from vimamba.tasks.errors import TaskError
from vimamba.tasks.schedule import Schedule
from vimamba.tasks.task import Task

LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 100
# of the loss before, in the running mean of the losses
KEPT = 0.9
# first steps, whose mean is still one of few batches
UNSURE = 10
# steps to either side that a slope is of, together seven tenths of a power of ten
HALF = 5


class RateRise(Callback):
    """Raises the rate at every step, evenly on a logarithmic scale, and notes the loss.

    The training ends once the loss is as far above its first value as it has been below it, and at
    least half of that value.

    Attributes:
        rates: Of each step.
        losses: The running mean at each step.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._mean = 0.0
        self._batches: list[float] = []

    @property
    def rows(self) -> list[dict[str, float]]:
        """What was noted, by step."""
        pairs = zip(self.rates, self.losses, strict=True)
        return [{"lr": rate, "loss": loss} for rate, loss in pairs]

    @property
    def suggestion(self) -> float | None:
        """The rate, of three digits, where the loss falls fastest; None if it does not fall."""
        lowest = int(np.argmin(self.losses)) if self.losses else 0
        losses = np.array(self.losses[UNSURE : lowest + 1])
        # the rates are evenly spaced, so differences are slopes
        slopes = losses[2 * HALF :] - losses[: -2 * HALF]
        if not (slopes < 0).any():
            return None
        return float(f"{self.rates[UNSURE + HALF + slopes.argmin()]:.3g}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the schedule.

        Raises:
            TaskError: The task has another one.
        """
        configs = trainer.lr_scheduler_configs
        if len(configs) != 1 or not isinstance(configs[0].scheduler, Schedule):
            raise TaskError(
                f"{type(pl_module).__name__} has its own schedule, whose rate cannot be "
                "looked for; Lightning's Tuner.lr_find can for a training in Python"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate of all groups, each with its own share of it."""
        schedule: Any = trainer.lr_scheduler_configs[0].scheduler
        self._step = trainer.global_step
        self._rate = LOWEST * (HIGHEST / LOWEST) ** (self._step / (STEPS - 1))
        schedule.base_values = [self._rate] * len(schedule.base_values)
        schedule.step_update(self._step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss once a step is done, of all its batches and processes."""
        loss = outputs["loss"].detach().float()
        self._batches.append(float(trainer.strategy.reduce(loss)))
        if trainer.global_step == self._step:
            return
        loss, self._batches = sum(self._batches) / len(self._batches), []
        if not np.isfinite(loss):
            trainer.should_stop = True
            return
        self._mean = KEPT * self._mean + (1 - KEPT) * loss
        self.losses.append(self._mean / (1 - KEPT ** (len(self.losses) + 1)))
        self.rates.append(self._rate)
        first = self.losses[0]
        room = max(first - min(self.losses), abs(first) / 2)
        trainer.should_stop = trainer.should_stop or self.losses[-1] > first + room


def find_rate(
    task: Task, data: LightningDataModule, make_trainer: Callable[..., Trainer]
) -> RateRise:
    """Train a copy of a task with a rising rate.

    The task, and all generators of random numbers, are afterwards as they were before.

    Args:
        task: What is going to be trained. All of it is trained from the first step here, whatever
            its `freeze_epochs`.
        data: Its data.
        make_trainer: Makes a trainer, as `Trainer` itself does, with these arguments besides those
            that are meant for the training.

    Raises:
        TaskError: The schedule is not that of `Task.configure_optimizers`.
        KeyboardInterrupt: Ctrl-C.
    """
    rise, copy = RateRise(), deepcopy(task)
    copy.optim = replace(
        task.optim, schedule="constant", warmup_epochs=0, freeze_epochs=0, minutes=None
    )
    with isolate_rng():
        trainer = make_trainer(
            max_steps=STEPS,
            max_epochs=-1,
            min_epochs=None,
            max_time=None,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[rise],
            logger=False,
            profiler=None,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(copy, data)
        except SystemExit:
            # what Lightning makes of Ctrl-C, after which it ignores the next one
            if trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
    return rise
