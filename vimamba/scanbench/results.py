"""What the runs of a bench left: scores by order, seed and fold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vimamba.errors import UsageError
from vimamba.files import write_rows
from vimamba.runs import Run, read_run
from vimamba.scan_orders import num_paths
from vimamba.scanbench.plan import Plan, Trial, is_finished, read_mark


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        trial: Which run of the bench it is.
        run: What its folder says.
        split: What was scored: "test", or "val" where there is no test split.
        scores: All scores that are numbers, by their names in metrics.json.
        per_class: Rows of scores, each with the name of its "class".
        alike: Part of the initial weights that all orders share; None if that is not known.
    """

    trial: Trial
    run: Run
    split: str
    scores: dict[str, float]
    per_class: tuple[dict[str, Any], ...]
    alike: float | None


@dataclass(frozen=True)
class Bench:
    """A bench with its finished runs, and why others have no scores.

    Attributes:
        out: Its folder.
        plan: What was to be trained.
        results: Finished runs in the order of the plan.
        failed: Why, for each run that ended with an error.
        missing: Runs that were not begun or not ended.
    """

    out: Path
    plan: Plan
    results: tuple[Result, ...]
    failed: dict[Trial, str]
    missing: tuple[Trial, ...]

    @property
    def split(self) -> str:
        """What was scored."""
        return self.results[0].split if self.results else "test"

    def of_model(self, model: str) -> tuple[Result, ...]:
        """The finished runs of a model."""
        return tuple(result for result in self.results if result.trial.model == model)


def read_bench(out: Path, plan: Plan) -> Bench:
    """Read all runs.

    Args:
        out: Folder of the bench.
        plan: Its plan.

    Raises:
        UsageError: A finished run has lost its scores.
    """
    results, failed, missing = [], {}, []
    for trial in plan.trials():
        run = trial.folder(out)
        if is_finished(run):
            results.append(read_result(run, trial))
        elif error := read_mark(run).get("error"):
            failed[trial] = str(error)
        else:
            missing.append(trial)
    return Bench(out, plan, tuple(results), failed, tuple(missing))


def read_result(folder: Path, trial: Trial) -> Result:
    """The scores of a finished run.

    Raises:
        UsageError: They are not there.
    """
    run = read_run(folder)
    split = next((name for name in ("test", "val") if name in run.reports), None)
    if split is None:
        raise UsageError(f"{folder / 'metrics.json'} has no scores of a test or val split")
    report = run.reports[split]
    scores = {
        name: float(value)
        for name, value in report.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    per_class = tuple(report.get("per_class", ()))
    return Result(trial, run, split, scores, per_class, read_mark(folder).get("alike"))


def write_results(path: Path, benches: Sequence[Bench]) -> None:
    """Write a row per run: what it is, its scores, its cost."""
    rows = []
    for bench in benches:
        for result in bench.results:
            trial, run = result.trial, result.run
            rows.append(
                {
                    "data": bench.plan.data,
                    "model": trial.model,
                    "order": trial.order,
                    "paths": num_paths(trial.order, bench.plan.dims),
                    "seed": trial.seed,
                    "fold": "" if trial.fold is None else trial.fold,
                    "start": "pretrained" if bench.plan.pretrained else "scratch",
                    "split": result.split,
                    **result.scores,
                    "epoch": (run.best_row or {}).get("epoch"),
                    "seconds": round(run.seconds, 1),
                    "parameters": run.parameters,
                    "alike": result.alike,
                    "run": str(run.folder),
                }
            )
    write_rows(path, rows)
