"""Reads a run folder as data: its settings, a row for each epoch, its scores, its record.

File sizes are limited, nothing is built, and no class that a file names is imported. A run can be
read while it trains.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vimamba.errors import UsageError
from vimamba.files import write_whole
from vimamba.reading import read_json, read_yaml

Row = dict[str, float]

# facts that are not in config.yaml and metrics.csv; see `update_record`
RECORD = "run.json"
_TYPES = {
    **{"task": str, "monitor": str, "parameters": int, "best": dict | None},
    **{"stopped": str | None, "finished": bool},
}
_BEST = {"step": int, "metric": str, "value": float | int}
# settings by which no two runs are alike, and copies of `seed_everything`
_OF_THE_PLACE = ("trainer.default_root_dir", "model.init_args.seed", "data.init_args.seed")


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not.

    Attributes:
        folder: Its folder.
        settings: Values of config.yaml by dotted names, as in "model.init_args.optim.lr".
        record: What run.json holds; see `update_record`.
        rows: Those of metrics.csv: "epoch" (from 1, a fraction within an epoch), "step", "lr",
            "seconds" since the epoch began, and metrics such as "val/loss". What was not measured
            at a step is not in its row.
        reports: What metrics.json holds: by the name of a split, its scores.
    """

    folder: Path
    settings: Mapping[str, Any]
    record: Mapping[str, Any]
    rows: Sequence[Row]
    reports: Mapping[str, Any]

    @property
    def monitor(self) -> str | None:
        """The metric that decides which checkpoint is best, higher is better."""
        return self.record.get("monitor")

    @property
    def parameters(self) -> int | None:
        """How many numbers the network has to be trained."""
        return self.record.get("parameters")

    @property
    def is_finished(self) -> bool:
        """Whether the training came to its end and the results are written."""
        return bool(self.record.get("finished"))

    @property
    def seconds(self) -> float:
        """How long all epochs took together, their validation included."""
        ends = {math.ceil(row["epoch"]): row["seconds"] for row in self.rows}
        return sum(ends.values())

    @property
    def epochs(self) -> float:
        """How many epochs are done."""
        return self.rows[-1]["epoch"] if self.rows else 0

    @property
    def state(self) -> str:
        """How far the run has come, in a few words."""
        if self.is_finished:
            return self.record.get("stopped") or "finished"
        planned = self.settings.get("trainer.max_epochs")
        of = f" of {planned}" if isinstance(planned, int) and planned > 0 else ""
        return f"unfinished: epoch {self.epochs:g}{of}"

    @cached_property
    def best_row(self) -> Row | None:
        """What is known of the weights in best.ckpt; None if no epoch was good enough yet.

        Its monitored score is the one that decided, also where weights were averaged afterwards.
        """
        best = self.record.get("best")
        if not best:
            return None
        row = next((row for row in self.rows if row["step"] == best["step"]), {})
        return {**row, best["metric"]: best["value"]}

    def score(self, split: str, name: str) -> float | None:
        """A score of metrics.json; None if the split was not scored or it is undefined."""
        value = (self.reports.get(split) or {}).get(name)
        return value if isinstance(value, int | float) else None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Args:
        folder: Written by `vimamba fit`.

    Raises:
        UsageError: It is no run, or a file of it is damaged.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        runs = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
        hint = f"; it holds runs, as {folder / runs[0]}" if runs else ""
        raise UsageError(f"{folder} is not a run folder: there is no {config}{hint}")
    metrics, scores = folder / "metrics.csv", folder / "metrics.json"
    return Run(
        folder,
        flatten(read_yaml(config, UsageError)),
        read_record(folder),
        read_rows(metrics) if metrics.is_file() else [],
        read_json(scores, UsageError) if scores.is_file() else {},
    )


def read_rows(path: Path) -> list[Row]:
    """Rows of a metrics.csv, without their empty cells.

    Raises:
        UsageError: A cell is no number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def curve(rows: Sequence[Row], metric: str) -> tuple[list[float], list[float]]:
    """The epochs at which a metric was measured, and its values."""
    known = [row for row in rows if metric in row]
    return [row["epoch"] for row in known], [row[metric] for row in known]


def read_record(folder: Path) -> dict[str, Any]:
    """What a run's record holds; nothing for a run of before there were any.

    Raises:
        UsageError: It is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    record = read_json(path, UsageError)
    _check_types(path, record, _TYPES)
    if record.get("best") is not None:
        _check_types(path, {**dict.fromkeys(_BEST), **record["best"]}, _BEST)
    return record


def _check_types(path: Path, values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    for name, kind in types.items():
        if name in values and not isinstance(value := values[name], kind):
            raise UsageError(f"{path}: {name} is {value!r:.60}; expected {kind}")


def update_record(folder: Path, **values: Any) -> None:
    """Record what the other files of a run do not contain.

    Args:
        folder: The run folder.
        **values: `task`, its name; `monitor`, the metric that decides; `parameters`, their number;
            `best`, of the weights in best.ckpt the "step" and the "metric" that decided with its
            "value"; `stopped`, why the training ended early; `finished`. What is not given stays.
    """
    record = {**read_record(folder), **values}
    with write_whole(folder / RECORD) as part:
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def flatten(settings: Any, name: str = "") -> dict[str, Any]:
    """Dotted names of nested values; mappings in a list are numbered from 0."""
    if isinstance(settings, list) and any(isinstance(entry, dict) for entry in settings):
        settings = {str(place): entry for place, entry in enumerate(settings)}
    if not isinstance(settings, dict):
        return {name: settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flatten(value, f"{name}.{key}" if name else str(key))
    return found


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted names of the settings that are not the same in all of several runs.

    Those that every run has come first. One that a run does not have counts as None.

    Args:
        settings: Of each run, as in `Run.settings`.
    """
    names = list(dict.fromkeys(name for each in settings for name in each))
    found = [
        name
        for name in names
        if name not in _OF_THE_PLACE
        and any(each.get(name) != settings[0].get(name) for each in settings[1:])
    ]
    return sorted(found, key=lambda name: not all(name in each for each in settings))
