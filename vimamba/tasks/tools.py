"""What the command needs of a task besides training: tables, pictures, answers, the export.

A task's folder has a module of these functions; `Task.tools` names it. It is imported when first
used, so that training needs no pictures.
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
    """A run, or all folds of a cross-validation, that answers for new inputs.

    Attributes:
        folder: Of the run.
        data: Arguments of the data set it was trained on.
        checkpoints: One file for each network that answers.
        load: Makes the task, with its weights.
    """

    folder: Path
    data: dict[str, Any]
    checkpoints: tuple[Path, ...]
    load: Callable[[], Any]

    def origin(self) -> dict[str, Any]:
        """What answers come from, as plain values that change when a checkpoint does."""
        states = [checkpoint.stat() for checkpoint in self.checkpoints]
        return {
            "checkpoints": [str(checkpoint.resolve()) for checkpoint in self.checkpoints],
            "checkpoint_bytes": [state.st_size for state in states],
            "checkpoint_modified": [state.st_mtime_ns for state in states],
        }


class Tools(Protocol):
    """The functions of such a module."""

    # pictures and lists a run leaves besides those that all runs leave: name and what it is
    RESULTS: tuple[tuple[str, str], ...]
    # what `vimamba predict` takes besides the run, in an example
    INPUTS: tuple[str, ...]
    # what to call the predictions in an example, in a run's folder too
    PREDICTIONS: str
    # the options of `vimamba predict` that only some tasks take, with their defaults
    PREDICT_OPTIONS: Mapping[str, Any]

    def show_data(self, data: Any) -> None:
        """Check the data and print what it holds."""
        ...

    def draw_data(self, data: Any, out: Path) -> None:
        """Draw samples of the data into the run folder."""
        ...

    def show_scores(self, split: str, report: dict[str, Any]) -> None:
        """Print the scores of a split."""
        ...

    def headline(self, split: str, report: dict[str, Any]) -> str:
        """The score that matters most, in a line."""
        ...

    def write_results(self, report: dict[str, Any], split: str, out: Path) -> dict[str, Any]:
        """Write lists that are too long for metrics.json; returns the report without them."""
        ...

    def draw_results(
        self, task: Any, data: Any, split: str, report: dict[str, Any], out: Path
    ) -> None:
        """Draw what came out into the run folder."""
        ...

    def export(self, task: Any, data: Any, folder: Path) -> None:
        """Write the scored network for use elsewhere."""
        ...

    def export_hint(self, folder: Path) -> str:
        """How to load the export."""
        ...

    def predict(self, run: FinishedRun, given: Namespace) -> int:
        """Answer for new inputs; returns the exit code of `vimamba predict`."""
        ...


class FoldTools(Tools, Protocol):
    """What such a module has besides if `vimamba cross-validate` reports on its task."""

    # the scores in a report that the folds are compared by, and their names
    FOLD_SCORES: Mapping[str, str]
    # what `pool_folds` draws: name and what it is
    FOLD_RESULTS: tuple[tuple[str, str], ...]

    def pool_folds(self, folds: Folds, out: Path) -> Pooled:
        """Score the held-out cases of all folds together; draw what shows them into `out`."""
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
