"""What the command needs from a task besides training: tables, pictures, predictions, export.

A task's folder has a module with these functions; `Task.tools` names it. It is imported when first
used, so training does not import it.
"""

import importlib
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vimamba.errors import UsageError
from vimamba.tasks.folds import Folds, Pooled


@dataclass(frozen=True)
class FinishedRun:
    """A run, or all folds of a cross-validation, used for prediction.

    Attributes:
        folder: Folder of the run.
        data: Arguments of the data set it was trained on.
        checkpoints: One file for each network.
        load: Builds the task, with its weights.
    """

    folder: Path
    data: dict[str, Any]
    checkpoints: tuple[Path, ...]
    load: Callable[[], Any]

    def origin(self) -> dict[str, Any]:
        """Origin of predictions, as plain values that change when a checkpoint does."""
        states = [checkpoint.stat() for checkpoint in self.checkpoints]
        return {
            "checkpoints": [str(checkpoint.resolve()) for checkpoint in self.checkpoints],
            "checkpoint_bytes": [state.st_size for state in states],
            "checkpoint_modified": [state.st_mtime_ns for state in states],
        }


class Tools(Protocol):
    """The functions of such a module."""

    # a run's own pictures and lists, in addition to those of all runs: name and description
    RESULTS: tuple[tuple[str, str], ...]
    # example inputs of `vimamba predict`
    INPUTS: tuple[str, ...]
    # example name of the predictions, also the default in a run's folder
    PREDICTIONS: str
    # options of `vimamba predict` specific to this task, with their defaults
    PREDICT_OPTIONS: Mapping[str, Any]

    def show_data(self, data: Any) -> None:
        """Check the data and print a summary."""
        ...

    def draw_data(self, data: Any, out: Path) -> None:
        """Draw samples of the data into the run folder."""
        ...

    def show_scores(self, split: str, report: dict[str, Any]) -> None:
        """Print the scores of a split."""
        ...

    def headline(self, split: str, report: dict[str, Any]) -> str:
        """The most important score, in a line."""
        ...

    def write_results(self, report: dict[str, Any], split: str, out: Path) -> dict[str, Any]:
        """Write lists that are too long for metrics.json; returns the report without them."""
        ...

    def draw_results(
        self, task: Any, data: Any, split: str, report: dict[str, Any], out: Path
    ) -> None:
        """Draw the results into the run folder."""
        ...

    def export(self, task: Any, data: Any, folder: Path) -> None:
        """Write the scored network for use elsewhere."""
        ...

    def export_hint(self, folder: Path) -> str:
        """How to load the export."""
        ...

    def predict(self, run: FinishedRun, given: Namespace) -> int:
        """Predict for new inputs; returns the exit code of `vimamba predict`."""
        ...


class FoldTools(Tools, Protocol):
    """What such a module also needs for `vimamba cross-validate`."""

    # the scores in a report that are compared between folds, and their names
    FOLD_SCORES: Mapping[str, str]
    # pictures drawn by `pool_folds`: name and description
    FOLD_RESULTS: tuple[tuple[str, str], ...]

    def pool_folds(self, folds: Folds, out: Path) -> Pooled:
        """Pool the scores of the held-out cases of all folds; draw pictures into `out`."""
        ...


def tools_of(task: type) -> Tools:
    """The module that a task names.

    Args:
        task: A class of tasks.

    Raises:
        UsageError: It names none, or one that lacks something.
    """
    return _checked_module(task, Tools)


def fold_tools_of(task: type) -> FoldTools:
    """The module that a task names, with what cross-validation needs of it.

    Args:
        task: A class of tasks.

    Raises:
        UsageError: It names none, or one that lacks something.
    """
    return _checked_module(task, FoldTools)


def _checked_module(task: type, protocol: type) -> Any:
    name = getattr(task, "tools", "")
    if not name:
        raise UsageError(
            f"{task.__name__} names no module of tables and pictures: set its `tools` to the "
            "dotted name of one with the functions of vimamba.tasks.tools.Tools"
        )
    module = importlib.import_module(name)
    wanted = [
        key
        for part in reversed(protocol.__mro__)
        if part in (Tools, FoldTools)
        for key in (*part.__annotations__, *vars(part))
        if not key.startswith("_")
    ]
    if missing := [key for key in wanted if not hasattr(module, key)]:
        raise UsageError(
            f"{name}, the module of tables and pictures of {task.__name__}, lacks "
            f"{', '.join(missing)}; see vimamba.tasks.tools.{protocol.__name__}"
        )
    return module
