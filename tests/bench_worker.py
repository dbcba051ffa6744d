"""A bench without training: a plan, and a substitute for runs, which end in different ways."""

import os
import signal
import time

from vimamba.scanbench.plan import Plan, Trial
from vimamba.scanbench.running import INTERRUPTED, Job, Outcome

PLAN = Plan(
    task="classification",
    score="accuracy",
    data="photos",
    dims=2,
    pretrained=False,
    equal_paths=False,
    models=("test_vim",),
    orders=("cross", "local(window=7)"),
    seeds=(0, 1),
    folds=None,
    baseline="cross",
)


def job(tmp_path, order: str) -> Job:
    return Job(Trial("model", order, 0), tmp_path / order, {})


def pretend(job: Job) -> Outcome:
    """Ends in the way named by its order."""
    begun = job.out.with_suffix(".begun")
    first = not begun.exists()
    with begun.open("a") as file:
        print(os.getpid(), file=file)
    if job.trial.order == "killed" or (job.trial.order == "killed_once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        time.sleep(60 if job.trial.order == "long" else 0)
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED, 0.0)
    return Outcome(0, float(os.getpid()))
