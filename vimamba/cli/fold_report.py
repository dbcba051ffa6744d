"""Results of a cross-validation: tables over all held-out cases, classes and folds."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from vimamba.checkpoints import read_checkpoint
from vimamba.cli.folds import Record, fold_folder
from vimamba.cli.runs import read_config
from vimamba.cli.settings import task_class
from vimamba.console import command_line, number, say, show_table
from vimamba.files import write_rows, write_whole
from vimamba.tasks.ensemble import can_join
from vimamba.tasks.folds import Folds, Row, plus_minus, spread
from vimamba.tasks.registry import task_name
from vimamba.tasks.tools import fold_tools_of


def report_folds(out: Path, record: Record) -> None:
    """Write cases.csv, folds.csv, summary.json and the pictures; print a summary.

    Args:
        out: Folder of a cross-validation whose folds are finished.
        record: Its record.
    """
    from vimamba.cli.fold_pictures import draw_folds

    task = task_class(read_config(fold_folder(out, 0)))
    tools = fold_tools_of(task)
    folds = read_folds(out, record, tools.FOLD_SCORES)
    pooled = tools.pool_folds(folds, out)
    summary = {
        "task": task_name(task),
        "folds": record.folds,
        "choose": record.choose,
        "over_folds": folds.over_folds,
        "per_fold": folds.per_fold,
        **pooled.summary,
    }
    if folds.cases:
        write_rows(out / "cases.csv", folds.cases)
    write_rows(out / "folds.csv", folds.per_fold)
    with write_whole(out / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw_folds(pooled, record.folds, out / "folds.png")
    for table in pooled.tables:
        show_table(*table)
    show_folds(folds, record, tools.FOLD_SCORES)
    say(f"cross-validation: {pooled.headline}")
    for name, what in (
        *((("cases.csv", "every held-out case with its fold"),) if folds.cases else ()),
        ("folds.csv", "the scores of each fold; summary.json has means and deviations"),
        ("folds.png", pooled.axis),
        *tools.FOLD_RESULTS,
        ("fold0 ...", "a run for each fold"),
    ):
        say(f"  {out / name}: {what}")
    run = out if can_join(task) else fold_folder(out, 0)
    say(f"next: {command_line('predict', run, *tools.INPUTS, '--out', tools.PREDICTIONS)}")


def read_folds(out: Path, record: Record, names: Mapping[str, str]) -> Folds:
    """The reports and cases of all folds.

    Args:
        out: Folder of the cross-validation.
        record: Its record.
        names: Scores to compare the folds by.
    """
    reports, cases, per_fold = [], [], []
    for fold in range(record.folds):
        folder = fold_folder(out, fold)
        report = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]
        reports.append(report)
        cases += [{"fold": fold, **row} for row in read_rows(folder / "cases_test.csv")]
        per_fold.append({"fold": fold, **fold_row(folder, report, names)})
    over_folds = {}
    for name in names:
        values = [row[name] for row in per_fold if row.get(name) is not None]
        if values:
            over_folds[name] = spread(values)
    return Folds(reports, cases, per_fold, over_folds)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a list, if there is one."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fold_row(folder: Path, report: Row, names: Mapping[str, str]) -> Row:
    """Scores of one fold in a row, with their epoch."""
    content = read_checkpoint(folder / "checkpoints" / Path(report["checkpoint"]).name)
    scores = {name: report[name] for name in names if isinstance(report.get(name), float)}
    return {"images": report["images"], "epoch": content["epoch"] + 1, **scores}


def show_folds(folds: Folds, record: Record, names: Mapping[str, str]) -> None:
    """Print the scores of each fold, their means and standard deviations."""
    known = [name for name in names if name in folds.over_folds]
    rows = [
        [str(row["fold"]), row["epoch"], row["images"], *(number(row.get(name)) for name in known)]
        for row in folds.per_fold
    ]
    rows.append(["mean ± sd", "", "", *(plus_minus(folds.over_folds[name]) for name in known)])
    chosen = "best on its own val split" if record.choose == "inner" else "last"
    head = ["fold", "epoch", "images", *(names[name] for name in known)]
    show_table(f"the folds; the epoch of each is the {chosen}", head, rows)
