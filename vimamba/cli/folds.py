"""A folder written by `vimamba cross-validate`: its record, its folds, their networks combined."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vimamba.errors import UsageError
from vimamba.files import write_whole
from vimamba.tasks.tools import FinishedRun

RECORD = "cross_validation.json"
# settings of data that say which images there are and how a training takes them, not what a
# network sees of one
OF_THE_SET = {
    *("root", "fold", "folds", "fold_as", "split_csv", "val_fraction", "test_fraction"),
    *("group_pattern", "limit", "seed", "workers", "batch_size", "cache"),
    *("patches", "foreground", "augmentation", "scored_pairs"),
}
Choice = Literal["inner", "last"]


@dataclass
class Record:
    """Settings and progress of a cross-validation.

    Attributes:
        folds: Number of folds.
        choose: How the epoch to score is chosen: the best one on a val split taken from a fold's
            own training images ("inner"), or the last one.
        finished: Folds that are trained and scored.
    """

    folds: int
    choose: Choice
    finished: list[int] = field(default_factory=list)

    @property
    def checkpoint(self) -> str:
        """Which checkpoint of each fold is used."""
        return "best" if self.choose == "inner" else "last"

    def write(self, out: Path) -> None:
        """Save the record in the folder."""
        with write_whole(out / RECORD) as part:
            part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_record(out: Path) -> Record | None:
    """The record of a folder; None if it is not the folder of a cross-validation.

    Raises:
        UsageError: The record is damaged.
    """
    path = out / RECORD
    if not path.is_file():
        return None
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
        well = record.choose in ("inner", "last") and record.folds >= 2
        if well and set(record.finished) <= set(range(record.folds)):
            return record
    except (ValueError, TypeError):
        pass
    raise UsageError(f"{path} is not a record of a cross-validation")


def fold_folder(out: Path, fold: int) -> Path:
    """Folder of a fold's run."""
    return out / f"fold{fold}"


def voting_runs(run: Path) -> list[Path]:
    """The runs whose networks predict for a folder: a run itself, or all folds.

    Raises:
        UsageError: A fold is not finished.
    """
    record = read_record(run)
    if record is None:
        return [run]
    missing = sorted(set(range(record.folds)) - set(record.finished))
    if missing:
        raise UsageError(
            f"{run}: fold {missing[0]} is not finished; go on with `vimamba cross-validate "
            f"--resume {run}`, or name one run, such as {fold_folder(run, 0)}"
        )
    return [fold_folder(run, fold) for fold in range(record.folds)]


def find_checkpoints(run: Path, requested: str | None) -> list[Path]:
    """The checkpoint of each run that predicts for a folder.

    Args:
        run: A run, or a cross-validation.
        requested: "best", "last" or a file; None: the default, for a run the best one.

    Raises:
        UsageError: A checkpoint is missing, or a file is given for several folds.
    """
    from vimamba.cli.runs import find_checkpoint

    record = read_record(run)
    if record is not None and requested not in (None, "best", "last"):
        raise UsageError(f"--ckpt {requested}: for the folds of {run} it must be best or last")
    requested = requested or (record.checkpoint if record else "best")
    return [find_checkpoint(each, requested) for each in voting_runs(run)]


def finished_run(run: Path, requested: str | None, others: Sequence[Path] = ()) -> FinishedRun:
    """The network of a run, or those of several runs or all folds combined.

    Args:
        run: A run, or a cross-validation.
        requested: As in `find_checkpoints`.
        others: More runs, cross-validations or checkpoint files of runs for the ensemble.

    Raises:
        UsageError: A checkpoint is missing.
    """
    from vimamba.cli.runs import read_config

    if others and requested not in (None, "best", "last"):
        raise UsageError(f"--ckpt {requested}: for several runs it must be best or last")
    voters = [voter for named in (run, *others) for voter in _voters(named, requested)]
    runs, checkpoints = zip(*voters, strict=True)
    data = read_config(runs[0])["data"]["init_args"]
    return FinishedRun(run, data, checkpoints, lambda: load_voters(runs, checkpoints))


def _voters(named: Path, requested: str | None) -> list[tuple[Path, Path]]:
    """The runs and checkpoints in a folder, or the run of a checkpoint file."""
    if named.is_file():  # RUN/checkpoints/FILE
        return [(named.absolute().parents[1], named)]
    return list(zip(voting_runs(named), find_checkpoints(named, requested), strict=True))


def load_voters(runs: Sequence[Path], checkpoints: Sequence[Path]) -> Any:
    """The task of a run, or the one that averages the probabilities of several.

    Args:
        runs: One, the folds of a cross-validation, or others.
        checkpoints: The file of each.

    Raises:
        UsageError: The runs differ in their task or do not preprocess images the same way.
    """
    from vimamba.cli.runs import load_task, read_config
    from vimamba.tasks.ensemble import join_tasks

    tasks = [load_task(each, file) for each, file in zip(runs, checkpoints, strict=True)]
    if len(tasks) == 1:
        return tasks[0]
    for each, task in zip(runs, tasks, strict=True):
        if type(task) is not type(tasks[0]):
            kinds = [type(one).__name__ for one in (tasks[0], task)]
            raise UsageError(f"{runs[0]} is a run of {kinds[0]}, {each} one of {kinds[1]}")
    first, *others = [prepared_by(read_config(each)) for each in runs]
    for each, settings in zip(runs[1:], others, strict=True):
        if differing := [key for key in first if first[key] != settings.get(key)]:
            raise UsageError(
                f"{runs[0]} and {each} differ in data.{differing[0]}, so their networks cannot "
                "be combined; predict with each alone"
            )
    return join_tasks(tasks)


def prepared_by(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run's data, except those that decide which images it has, and when."""
    given = config["data"]["init_args"]
    return {key: value for key, value in given.items() if key not in OF_THE_SET}
