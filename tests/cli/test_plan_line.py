"""The line that says how many steps a training has, and how its learning rate goes."""

from types import SimpleNamespace

import pytest
import torch

from vimamba.cli.callbacks import plan_line
from vimamba.tasks.optim import Optimization
from vimamba.tasks.schedule import Schedule


@pytest.mark.parametrize(
    ("epochs", "batches", "warmup", "line"),
    [
        (3, 1, 1, "1 step an epoch, 3 in all; warm-up 1 epoch (steps: 1)"),
        (6, 4, 2, "4 steps an epoch, 24 in all; warm-up 2 epochs (steps: 8)"),
        (3, 4, 2, "4 steps an epoch, 12 in all; warm-up 1 epoch (steps: 4), cut to a third"),
    ],
)
def test_one_step_and_one_epoch_are_singular(epochs, batches, warmup, line):
    trainer = SimpleNamespace(
        max_epochs=epochs,
        max_steps=-1,
        estimated_stepping_batches=epochs * batches,
        num_training_batches=batches,
        accumulate_grad_batches=1,
        callbacks=[],
        global_step=0,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = Schedule(optimizer, Optimization(warmup_epochs=warmup), trainer)
    trainer.lr_scheduler_configs = [SimpleNamespace(scheduler=schedule)]
    assert plan_line(trainer).startswith(line)
    assert plan_line(trainer).endswith("; then the rate falls as a cosine")
