"""Names of the metrics logged in training, for callbacks that monitor one of them."""

from typing import TYPE_CHECKING

from vimamba.console import say
from vimamba.errors import UsageError

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI

TRAINING = ("train/loss",)


def is_validated(cli: "RecipeCLI") -> bool:
    """Whether a training is scored while it goes on."""
    return bool(cli.trainer.limit_val_batches) and "val" in cli.datamodule.catalogue.splits


def metric_names(cli: "RecipeCLI") -> list[str] | None:
    """The metrics a run logs, or None if the task does not declare them."""
    scores = cli.model.logged_scores()
    if scores is None:
        return None
    return [*TRAINING, *(f"val/{name}" for name in scores if is_validated(cli))]


def check_monitors(cli: "RecipeCLI") -> None:
    """Fail on a callback that monitors a metric which is never logged.

    Raises:
        UsageError: Names the callback and the available metrics.
    """
    patience = cli.config.patience
    if patience is not None and patience < 1:
        raise UsageError(f"--patience {patience} must be at least 1")
    if patience is not None and not is_validated(cli):
        raise UsageError(
            f"--patience {patience} waits for {cli.model.monitor}, but nothing is validated"
        )
    known = metric_names(cli)
    lower = {*TRAINING, *(f"val/{name}" for name in cli.model.lower_is_better)}
    for callback in vars(cli.trainer)["callbacks"]:
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        name = type(callback).__name__
        if monitor is None or known is None:
            continue
        if monitor not in known:
            names = ", ".join(known)
            raise UsageError(f"--trainer.callbacks {name}: monitor={monitor} is not one of {names}")
        if mode in ("min", "max") and (mode == "min") != (monitor in lower):
            better = "lower" if monitor in lower else "higher"
            say(f"note: {name} has mode={mode}, but a {better} {monitor} is better")
