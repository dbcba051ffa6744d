"""`vimamba compare`: runs side by side, the settings that differ first, then their scores.

Runs are read as data (`vimamba.runs`), so runs of any task can be compared, even during training.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from vimamba.cli.inquiries import make_parser
from vimamba.cli.options import TYPED_TO_SHORT
from vimamba.console import command_line, millions, say, show_wide_table
from vimamba.errors import UsageError
from vimamba.files import check_writable, write_rows, write_whole
from vimamba.runs import Run, differing, read_run

HELP = """\
Shows runs side by side: the settings that differ, then the scores. Nothing is recomputed and the
data are not needed; runs that are still training are shown with their progress.

  vimamba compare runs/*
  vimamba compare runs/vim runs/vmamba cv/photos --out comparison     a picture, CSV and Markdown
  vimamba compare runs/* --metric val/macro_f1 --json

Validation scores are those of the best epoch, whose weights are in best.ckpt; test scores are those
of `vimamba fit` or `vimamba test`. A cross-validation is shown as the mean and standard deviation
over its folds.
"""
# longest name of a run, and longest value of a setting, in a column
NAME, VALUE = 24, 28
Cell = float | str | None


@dataclass(frozen=True)
class Entry:
    """A line of the comparison: a run, or the folds of a cross-validation.

    Attributes:
        folder: As it was named.
        runs: One, or the folds that have begun.
        folds: How many a cross-validation has; 0 for a run.
    """

    folder: Path
    runs: tuple[Run, ...]
    folds: int = 0

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings by dotted names; of folds those that they share."""
        settings = dict(self.runs[0].settings)
        for name in differing([run.settings for run in self.runs]):
            settings.pop(name, None)
        return settings

    @property
    def state(self) -> str:
        """How far it has come."""
        if not self.folds:
            return self.runs[0].state
        done = sum(run.is_finished for run in self.runs)
        return "finished" if done == self.folds else f"unfinished: {done} of {self.folds} folds"

    @property
    def parameters(self) -> int | None:
        """Of one network."""
        return self.runs[0].parameters

    @property
    def seconds(self) -> float:
        """Of all training."""
        return sum(run.seconds for run in self.runs)

    def values(self, metric: str) -> list[float]:
        """A metric of each run that has it: "epoch", one of validation or one of the test split."""
        split, _, name = metric.partition("/")
        found = [
            run.score("test", name) if split == "test" else (run.best_row or {}).get(metric)
            for run in self.runs
        ]
        return [value for value in found if value is not None]

    def notes(self) -> Iterable[str]:
        """What has to be known to read its scores."""
        for run in self.runs:
            report = run.reports.get("test") or {}
            checkpoint = Path(str(report.get("checkpoint", "best.ckpt"))).name
            if not run.record:
                yield f"{run.folder}: its best epoch is unknown, there is no run.json"
            if not self.folds and checkpoint != "best.ckpt":
                yield f"{run.folder}: the test scores are those of {checkpoint}"
            if report.get("tta", "none") != "none":
                yield f"{run.folder}: the test scores are means of views, --tta {report['tta']}"


def read_entry(folder: Path) -> Entry:
    """A run or a cross-validation.

    Raises:
        UsageError: It is neither, or damaged; of a bench, what compares its runs.
    """
    if not (folder / "config.yaml").is_file():
        from vimamba.cli.folds import fold_folder, read_record
        from vimamba.scanbench.plan import read_plan

        record = read_record(folder)
        if record is not None:
            places = [fold_folder(folder, fold) for fold in range(record.folds)]
            runs = tuple(read_run(place) for place in places if (place / "config.yaml").is_file())
            if not runs:
                raise UsageError(f"{folder}: no fold has begun")
            return Entry(folder, runs, record.folds)
        if read_plan(folder) is not None:
            shown = command_line("scanbench", "--report", folder)
            raise UsageError(f"{folder} holds a bench; its runs are compared by: {shown}")
    return Entry(folder, (read_run(folder),))


def compare(args: list[str]) -> int:
    """Show runs side by side.

    Args:
        args: Run folders and options.

    Returns:
        Exit code.
    """
    parser = make_parser("compare", HELP)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of `fit` or `cross-validate`")
    parser.add_argument("--metric", help="instead of the one that decides: val/dice, val/loss ...")
    parser.add_argument("--out", type=Path, help="folder for compare.png, compare.csv, compare.md")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    given = parser.parse_args(args)
    entries = [read_entry(folder) for folder in dict.fromkeys(given.runs)]
    if len(entries) < 2:
        raise UsageError(f"{entries[0].folder}: name at least two runs to compare")
    if given.out is not None:
        check_writable(given.out)
    names = name_entries(entries)
    metrics = choose_metrics(entries, given.metric)
    settings = differing([entry.settings for entry in entries])
    rows = [
        summarize(entry, name, settings, metrics)
        for entry, name in zip(entries, names, strict=True)
    ]
    notes = [note for entry in entries for note in entry.notes()]
    if given.json:
        print(json.dumps({"runs": rows, "notes": notes}, indent=2, default=str))
    else:
        show(rows, settings, metrics, notes)
    if given.out is not None:
        from vimamba.cli.run_pictures import draw_runs

        runs = [(name, entry.runs) for name, entry in zip(names, entries, strict=True)]
        panels = [metric for metric in metrics if not metric.startswith("test/")]
        panels = list(dict.fromkeys([*panels, "train/loss"]))
        draw_runs(runs, panels, given.out / "compare.png")
        write_rows(given.out / "compare.csv", [flat(row) for row in rows])
        with write_whole(given.out / "compare.md") as part:
            part.write_text(markdown(rows, settings, metrics, notes), encoding="utf-8")
        if not given.json:
            say(f"written to {given.out}: compare.png, compare.csv, compare.md")
    return 0


def name_entries(entries: Sequence[Entry]) -> list[str]:
    """The folders' own names, or their paths where two have the same."""
    names = [entry.folder.resolve().name for entry in entries]
    return names if len(set(names)) == len(names) else [str(entry.folder) for entry in entries]


def choose_metrics(entries: Sequence[Entry], asked: str | None) -> list[str]:
    """The metrics to show: of validation, and those of the test split where there is one.

    Args:
        entries: To compare.
        asked: A column of metrics.csv, with or without its "val/"; None for those that decide which
            epoch is best, and the loss.

    Raises:
        UsageError: No run has this metric.
    """
    runs = [run for entry in entries for run in entry.runs]
    columns = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    known = [name for name in columns if "/" in name]
    if asked is None:
        tested = list(dict.fromkeys(run.monitor for run in runs if run.monitor in columns))
        chosen = [*tested, *(["val/loss"] if "val/loss" in columns else [])]
    else:
        chosen = [name for name in (asked, f"val/{asked}") if name in known][:1]
        if not chosen:
            raise UsageError(f"--metric {asked}: no run has it; choose from {', '.join(known)}")
        tested = chosen
    ends = [name.replace("val/", "test/") for name in tested if name.startswith("val/")]
    return [*chosen, *(name for name in ends if any(entry.values(name) for entry in entries))]


def summarize(
    entry: Entry, name: str, settings: Sequence[str], metrics: Sequence[str]
) -> dict[str, Any]:
    """The values of an entry; means over folds, with separate deviations."""
    found = {metric: entry.values(metric) for metric in ("epoch", *metrics)}
    summary: dict[str, Any] = {
        "run": name,
        "folder": str(entry.folder),
        "state": entry.state,
        "settings": {key: entry.settings.get(key) for key in settings},
        "best_epoch": fmean(found["epoch"]) if found["epoch"] else None,
        "scores": {m: fmean(found[m]) if found[m] else None for m in metrics},
        "parameters": entry.parameters,
        "seconds": round(entry.seconds, 3),
    }
    if entry.folds:
        from vimamba.tasks.folds import spread

        spreads = {m: spread(found[m])["sd"] for m in metrics if found[m]}
        summary |= {"folds": entry.folds, "deviations": spreads}
    return summary


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A summary as a row of CSV."""
    deviations = {f"{name} sd": value for name, value in row.get("deviations", {}).items()}
    inner = {**row["settings"], **row["scores"], **deviations}
    return {
        **{key: row[key] for key in ("run", "folder", "state", "best_epoch")},
        **inner,
        **{key: row[key] for key in ("parameters", "seconds")},
    }


def show(
    rows: Sequence[dict[str, Any]],
    settings: Sequence[str],
    metrics: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Print both tables."""
    names = [row["run"] for row in rows]
    if any(len(name) > NAME for name in names):
        for number, row in enumerate(rows, 1):
            say(f"  {number}  {row['folder']}")
        names = [str(number) for number in range(1, len(rows) + 1)]
    if settings:
        heads, cells = settings_table(rows, settings)
        cells = [[cut(cell) for cell in line] for line in cells]
        cells = [[name, *line] for name, line in zip(names, cells, strict=True)]
        show_wide_table("settings that differ", ["run", *heads], cells)
    else:
        say("no setting differs")
    heads, cells = scores_table(rows, metrics)
    cells = [[name, *line] for name, line in zip(names, cells, strict=True)]
    show_wide_table("scores, those of validation at the best epoch", ["run", *heads], cells)
    for note in notes:
        say(f"note: {note}")


def settings_table(
    rows: Sequence[dict[str, Any]], settings: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the settings that differ; a head is the option that sets it."""
    typed = [f"--{name.replace('.init_args', '')}" for name in settings]
    short = [TYPED_TO_SHORT.get(name, name.rpartition(".")[2]).lstrip("-") for name in typed]
    heads = [
        name if short.count(name) == 1 else whole.lstrip("-")
        for name, whole in zip(short, typed, strict=True)
    ]
    return heads, [[shown(row["settings"][name]) for name in settings] for row in rows]


def scores_table(
    rows: Sequence[dict[str, Any]], metrics: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of what came of the runs."""
    heads = ["best epoch", *metrics, "M params", "time", "state"]
    cells = []
    for row in rows:
        epoch, size = row["best_epoch"], millions(row["parameters"])
        scores = [with_deviation(row, metric) for metric in metrics]
        start = "-" if epoch is None else f"{epoch:.4g}"
        time = str(timedelta(seconds=round(row["seconds"])))
        cells.append([start, *scores, size, time, row["state"]])
    return heads, cells


def with_deviation(row: dict[str, Any], metric: str) -> str:
    """A score in a cell, with its deviation over folds."""
    value, deviation = row["scores"][metric], row.get("deviations", {}).get(metric)
    if value is None:
        return "-"
    return f"{value:.4f}" if deviation is None else f"{value:.4f} ± {deviation:.4f}"


def shown(value: Any) -> str:
    """A setting as it is written in a recipe, a dash where there is none."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def cut(text: str) -> str:
    """A text that fits a column, without its middle: names of classes and folders end in it."""
    if len(text) <= VALUE:
        return text
    half = (VALUE - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def markdown(
    rows: Sequence[dict[str, Any]],
    settings: Sequence[str],
    metrics: Sequence[str],
    notes: Sequence[str],
) -> str:
    """Both tables, with whole names and values."""
    tables = [scores_table(rows, metrics)]
    if settings:
        tables.insert(0, settings_table(rows, settings))
    parts = []
    for heads, cells in tables:
        lines = [["run", *heads], ["---"] * (len(heads) + 1)]
        lines += [[row["run"], *line] for row, line in zip(rows, cells, strict=True)]
        texts = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
        parts.append("\n".join(f"| {text} |" for text in texts))
    parts += [f"Note: {note}." for note in notes]
    return "\n\n".join([*parts, "![curves](compare.png)"]) + "\n"
