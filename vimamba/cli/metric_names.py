"""Names of the metrics that a training logs, for callbacks that wait for one of them."""

from typing import TYPE_CHECKING

from vimamba.cli.errors import UsageError
from vimamba.cli.tables import say
from vimamba.tasks import Classification, Segmentation

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI

TRAINING = ("train/loss",)
LOWER_IS_BETTER = ("train/loss", "val/loss", "val/ece")


def metric_names(cli: "RecipeCLI") -> list[str] | None:
    """What a run logs, or None for a task of somebody's own."""
    task = cli.model
    if type(task) is Classification:
        scores = ["loss", "accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece"]
        scores += ["exact_match"] * task.multi_label
        scores += ["top5"] * (not task.multi_label and len(task.class_names) > 5)
    elif type(task) is Segmentation:
        scores = ["loss", "dice", "miou", "accuracy"]
    else:
        return None
    validated = cli.trainer.limit_val_batches and "val" in cli.datamodule.catalogue.splits
    return [*TRAINING, *(f"val/{name}" for name in scores if validated)]


def check_monitors(cli: "RecipeCLI") -> None:
    """Fail on a callback that waits for a metric which is never logged.

    Raises:
        UsageError: Names the callback, and the metrics there are.
    """
    known = metric_names(cli)
    for callback in vars(cli.trainer)["callbacks"]:
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        name = type(callback).__name__
        if monitor is None or known is None:
            continue
        if monitor not in known:
            names = ", ".join(known)
            raise UsageError(f"--trainer.callbacks {name}: monitor={monitor} is not one of {names}")
        if mode in ("min", "max") and (mode == "min") != (monitor in LOWER_IS_BETTER):
            better = "lower" if monitor in LOWER_IS_BETTER else "higher"
            say(f"note: {name} has mode={mode}, but a {better} {monitor} is better")
