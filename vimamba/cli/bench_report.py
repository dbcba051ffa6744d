"""The report of `vimamba scanbench`: reads the runs, has costs measured, and says what came out."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimamba.benchmark.timing import describe_machine
from vimamba.console import command_line, number, say
from vimamba.errors import UsageError
from vimamba.files import check_writable
from vimamba.scanbench.cost import Cost, measure_costs, read_costs, write_costs
from vimamba.scanbench.findings import find
from vimamba.scanbench.plan import find_order, read_plan
from vimamba.scanbench.report import SIZES, Study, write_report
from vimamba.scanbench.results import Bench, read_bench, read_result
from vimamba.scanbench.running import Job


def report(outs: Sequence[Path], given: Namespace) -> int:
    """Report on one bench, or on several together.

    Args:
        outs: Folders of benches.
        given: Options of the command.

    Returns:
        Exit code: 1 where a run failed.

    Raises:
        UsageError: A folder holds no bench, or no run has the score.
    """
    benches = [open_bench(out) for out in outs]
    place = given.out if given.report and given.out is not None else outs[0]
    check_writable(place)
    findings, costs, machines = [], {}, {}
    for bench in benches:
        asked = given.baseline or bench.plan.baseline
        baseline = find_order(asked, bench.plan.orders)
        if baseline is None:
            known = ", ".join(bench.plan.orders)
            raise UsageError(f"--baseline {asked} is none of the orders: {known}")
        for model in bench.plan.models:
            findings.append(find(bench, model, given.score or bench.plan.score, baseline))
        found, machines[bench.out] = collect_costs(bench)
        costs |= {(bench.out, model): by_order for model, by_order in found.items()}
    words = ("scanbench", "--resume" if len(outs) == 1 else "--report", *outs)
    more = () if len(outs) == 1 else ("--out", place)
    study = Study(
        findings=findings,
        costs=costs,
        machines=machines,
        score=score_name(benches, given.score),
        sizes=given.difference or SIZES,
        command=command_line(*words, *more),
    )
    for line in write_report(study, place):
        say(line)
    for name, what in (
        ("report.html", "the report, one file; report.md and pictures hold the same"),
        ("results.csv", "every run with its scores"),
    ):
        say(f"  {place / name}: {what}")
    for bench in benches:
        for trial, error in bench.failed.items():
            say(f"failed: {trial}: {error}")
    return int(any(bench.failed for bench in benches))


def open_bench(out: Path) -> Bench:
    """The bench of a folder.

    Raises:
        UsageError: There is none, or none of its runs is finished.
    """
    plan = read_plan(out)
    if plan is None:
        raise UsageError(f"{out} holds no bench")
    bench = read_bench(out, plan)
    if not bench.results:
        first = next(iter(bench.failed.items()), None)
        why = f"; {first[0]}: {first[1]}" if first else ""
        raise UsageError(f"{out}: no run of the bench is finished{why}")
    return bench


def score_name(benches: Sequence[Bench], asked: str | None) -> str:
    """What the score is called; of benches of several kinds, just that."""
    from vimamba.tasks.registry import find_task

    names = set()
    for bench in benches:
        score = asked or bench.plan.score
        names.add(find_task(bench.plan.task).headline_scores.get(score, score))
    return names.pop() if len(names) == 1 else "score"


def score_line(job: Job) -> str:
    """The score of a run that has just ended."""
    from vimamba.cli.settings import read_settings, task_class

    result = read_result(job.out, job.trial)
    task = task_class(read_settings(job.out))
    name, shown = next(iter(task.headline_scores.items()))
    return f"{result.split} {shown} {number(result.scores.get(name), 4)}"


def collect_costs(bench: Bench) -> tuple[dict[str, dict[str, Cost]], str]:
    """Costs of every model and order with a finished run, and the machine.

    They are measured where some are not known, alternating between all orders, and kept otherwise,
    wherever that was.
    """
    costs, machine = read_costs(bench.out)
    runs: dict[str, dict[str, Path]] = {}
    for result in bench.results:
        trial = result.trial
        runs.setdefault(trial.model, {}).setdefault(trial.order, result.run.folder)
    unknown = [m for m, by_order in runs.items() if not by_order.keys() <= costs.get(m, {}).keys()]
    here = describe_machine()
    if unknown and machine != here:  # figures of two machines do not go together
        costs, machine, unknown = {}, here, list(runs)
    for model in unknown:
        say(f"measuring time, memory and operations of {model}, {len(runs[model])} orders")
        costs[model] = measure_costs(load_tasks(runs[model]))
    if unknown:
        write_costs(bench.out, costs, machine)
    return costs, machine


def load_tasks(runs: dict[str, Path]) -> dict[str, Any]:
    """The trained task of a run of each order."""
    from vimamba.cli.runs import find_checkpoint, load_task

    return {order: load_task(run, find_checkpoint(run, "best")) for order, run in runs.items()}
