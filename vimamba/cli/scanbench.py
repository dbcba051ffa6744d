"""`vimamba scanbench`: every model with every scan order and seed, each a run, and what came out.

All runs are `vimamba fit` (`bench_runs.py`), paired by seed; `vimamba.scanbench` hands them out and
reports.
"""

import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from vimamba.cli.begun import check_alone, refuse_changes
from vimamba.cli.inquiries import check_at_least
from vimamba.cli.options import translate
from vimamba.console import command_line, say
from vimamba.errors import UsageError, VimambaError
from vimamba.files import list_entries, lock_folder, write_whole
from vimamba.reading import read_yaml
from vimamba.scan_orders import num_paths
from vimamba.scanbench.plan import (
    Plan,
    check_names,
    equalize,
    find_order,
    folder_name,
    is_finished,
    read_plan,
)
from vimamba.scanbench.running import INTERRUPTED, Job, LocalPool, Outcome, Pool, RayPool, run_all
from vimamba.scanbench.start import arguments_of

HELP = """\
Trains every model with every scan order and seed, and says which differences are more than noise.

  vimamba scanbench --data photos --model vmamba_tiny_s1l8 --orders cross hilbert "local(window=7)"
      --seeds 5 --epochs 10 --out runs/bench
  vimamba scanbench -c segmentation/nuclei_vm_unet --orders cross spiral --out runs/nuclei
  vimamba scanbench --resume runs/bench --seeds 8       go on after Ctrl-C, or with more seeds
  vimamba scanbench --report runs/bench --baseline hilbert
  vimamba scanbench --report runs/bench runs/nuclei --out runs/both

All other options are those of `vimamba fit`, of any task, also behind `--`. OUT/MODEL/ORDER/seed-N
are ordinary runs. Those of one seed have the same initial weights wherever shapes agree, and see
the same images in the same order. Finished runs are kept; models, orders and seeds can be added.
"""
# settings of all runs of a model; not config.yaml, which makes a folder a run
RECIPE = "recipe.yaml"
# options of a single run
OF_A_RUN = ("--seed", "--data.fold", "--data.folds", "--data.fold_as", "--dry-run")


def scanbench(args: list[str]) -> int:
    """Train what is not trained yet, and report.

    Args:
        args: Options of this command and of `vimamba fit`.

    Returns:
        Exit code: 1 where runs failed, 130 after Ctrl-C.
    """
    given, rest = parse(args)
    check_alone("scanbench", "--parallel and --ray start the others")
    # what the report needs, before the work
    import scikit_posthocs  # noqa: F401
    import statsmodels  # noqa: F401

    from vimamba.cli.bench_report import report

    if given.report:
        return report(given.report, given)
    out: Path = given.out
    plan, recipes = prepare(given, rest)
    with lock_folder(out):
        plan = adopt(plan, recipes, out)
        jobs = list_jobs(plan, recipes, out)
        total = sum(1 for _ in plan.trials())
        say(f"{total} runs, {total - len(jobs)} of them finished; each has a log.txt")
        code = train(jobs, given) if jobs else 0
        if code == INTERRUPTED:
            say(f"interrupted; continue with: {command_line('scanbench', '--resume', out)}")
            return code
        return max(code, report([out], given))


def parse(args: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Split off the options that are not of `vimamba fit`.

    Raises:
        UsageError: A value cannot be used, or an option is that of a single run.
    """
    parser = ArgumentParser(
        prog="vimamba scanbench",
        description=HELP,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", nargs="+", default=[], help="models or networks; a recipe's by default")
    add("--orders", nargs="+", default=[], metavar="ORDER", help="scan orders to compare")
    add("--seeds", nargs="+", type=int, metavar="N", help="how many, 5 by default; or which")
    add("--folds", type=int, metavar="N", help="train on every fold of the data, too")
    add("--baseline", metavar="ORDER", help="compare with it; the first of the orders by default")
    add("--equal-paths", action="store_true", default=None, help="give all orders as many paths "
        "as the baseline has")  # fmt: skip
    add("--out", type=Path, help="folder to write")
    add("--resume", type=Path, metavar="OUT", help="go on with a bench")
    add("--report", type=Path, nargs="+", metavar="OUT", help="report on finished benches")
    add("--parallel", type=int, metavar="N", help="runs at a time on this machine; 1 by default")
    add("--ray", metavar="ADDRESS", help="train on a Ray cluster: auto, local or its address")
    add("--gpus-per-run", type=float, metavar="X", help="with --ray: part of a GPU for each run")
    add("--score", metavar="NAME", help="report another score of metrics.json")
    add("--difference", type=float, nargs="+", metavar="POINTS", help="report how many seeds "
        "are needed to detect it")  # fmt: skip
    cut = args.index("--") if "--" in args else len(args)
    given, rest = parser.parse_known_args(args[:cut])
    rest += args[cut + 1 :]
    check_at_least(given, folds=2, parallel=1, seeds=0)
    check_options(given, rest)
    return given, rest


def check_options(given: Namespace, rest: Sequence[str]) -> None:
    """Fail on options that do not go together, before anything is read.

    Raises:
        UsageError: They are named.
    """
    names = {option.partition("=")[0] for option in rest}
    for name in sorted(names & {*OF_A_RUN, "--seed_everything"}):
        raise UsageError(f"{name} is for `vimamba fit`: --seeds and --folds are of the bench")
    if given.parallel is not None and given.ray is not None:
        raise UsageError("--parallel is for one machine; with --ray the cluster decides")
    if given.gpus_per_run is not None and (given.ray is None or given.gpus_per_run < 0):
        raise UsageError(f"--gpus-per-run {given.gpus_per_run}: a part of a GPU, with --ray only")
    if any(size <= 0 for size in given.difference or ()):
        raise UsageError(f"--difference {given.difference} must be positive, in points")
    for name in ("resume", "report"):
        if getattr(given, name) and (rest or given.model or given.folds or given.equal_paths):
            raise UsageError(f"--{name} takes the settings of before; give no others")
    if given.report and (given.orders or given.seeds or given.resume):
        raise UsageError("--report trains nothing: no --orders, --seeds or --resume with it")
    if given.report and len(given.report) > 1 and given.out is None:
        raise UsageError("--report of several benches needs --out FOLDER for the joint one")
    if given.resume is not None:
        if given.out not in (None, given.resume):
            raise UsageError(f"--out {given.out}: a bench goes on in its own folder")
        given.out = given.resume
    if not given.report and given.out is None:
        raise UsageError("--out FOLDER is required: the same command then goes on where it stopped")
    if not (given.report or given.resume or given.orders):
        raise UsageError('--orders ORDER ... is required, such as --orders cross "local(window=7)"')


def prepare(given: Namespace, rest: list[str]) -> tuple[Plan, dict[str, dict[str, Any]]]:
    """Check data, models and orders before anything is trained or written.

    Args:
        given: Options of this command.
        rest: Those of `vimamba fit`, short or typed.

    Returns:
        The plan, and the settings of each model's runs, but for order, seed and fold.

    Raises:
        UsageError: An option cannot be used, or a model cannot be made with an order.
    """
    from vimamba.tasks.registry import task_name

    before = resumed_plan(given)
    folds = before.folds if before else given.folds
    clis = [build_bench(each, folds, given.out) for each in options_of(given, rest, before)]
    task = clis[0].model
    equal = before.equal_paths if before else bool(given.equal_paths)
    baseline = given.baseline or (before.baseline if before else given.orders[0])
    known = before.orders if before else ()
    orders, baseline = choose_orders(given.orders, baseline, task.axes, known, equal=equal)
    seeds = list_seeds(given.seeds or [5]) if given.seeds or not before else before.seeds
    plan = Plan(
        task=task_name(type(task)),
        score=task.monitor.removeprefix("val/"),
        data=clis[0].datamodule.root.name,
        dims=task.axes,
        pretrained=bool(task.hparams["pretrained"]),
        equal_paths=equal,
        models=tuple(cli.config.model.init_args.model for cli in clis),
        orders=orders,
        seeds=seeds,
        folds=folds,
        baseline=baseline,
    )
    check_names("--model", plan.models)
    check_names("--orders", plan.orders)
    for cli in clis:
        for order in plan.orders:
            check_order(cli.model, order)
    recipes = {m: settings_of(cli) for m, cli in zip(plan.models, clis, strict=True)}
    return plan, recipes


def resumed_plan(given: Namespace) -> Plan | None:
    """The plan of the bench that goes on; None of a command that says everything itself.

    Raises:
        UsageError: There is no bench to go on with.
    """
    if not given.resume:
        return None
    plan = read_plan(given.out)
    if plan is None:
        raise UsageError(f"--resume {given.out}: there is no bench")
    return plan


def options_of(given: Namespace, rest: list[str], before: Plan | None) -> list[list[str]]:
    """The options of `vimamba fit` for each model: as given, or the recipes of before."""
    if before is not None:
        return [["--config", str(given.out / folder_name(m) / RECIPE)] for m in before.models]
    return [[*rest, "--model", model] for model in given.model] or [rest]


def list_seeds(given: Sequence[int]) -> tuple[int, ...]:
    """One number says how many seeds, from 0; several are the seeds.

    Raises:
        UsageError: There is none, or one twice.
    """
    seeds = tuple(range(given[0])) if len(given) == 1 else tuple(given)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {' '.join(map(str, given))}: at least one, and none twice")
    return seeds


def build_bench(options: list[str], folds: int | None, out: Path) -> Any:
    """Data set, task and trainer of a model's runs, checked.

    Raises:
        UsageError: An option cannot be used.
        DataError: The data cannot be trained on.
    """
    from vimamba.cli.recipe import build
    from vimamba.tasks.tools import tools_of

    typed = translate(options)
    if folds is not None:
        typed += ["--data.fold=0", f"--data.folds={folds}", "--data.fold_as=test"]
    cli = build(typed, out)
    devices = cli.config.trainer.devices
    if devices not in ("auto", 1, "1"):
        raise UsageError(f"--trainer.devices {devices}: a run of the bench has one device; "
                         "--parallel N trains N runs at a time")  # fmt: skip
    cli.config.trainer.devices = 1
    tools_of(type(cli.model)).show_data(cli.datamodule)
    if not {"val", "test"} & cli.datamodule.catalogue.splits.keys():
        raise UsageError(f"{cli.datamodule.root}: no image is held out, so nothing can be compared")
    return cli


def settings_of(cli: Any) -> dict[str, Any]:
    """The settings of a model's runs as plain data, with what was found out about the data."""
    for name, value in cli.datamodule.inferred_settings().items():
        cli.config.data.init_args[name] = value
    return yaml.safe_load(cli.parser.dump(cli.config))


def choose_orders(
    asked: Sequence[str], baseline: str, dims: int, known: Sequence[str], *, equal: bool
) -> tuple[tuple[str, ...], str]:
    """The orders of a bench and the one to compare with; with equal paths, what takes their places.

    Args:
        asked: To be added.
        baseline: As it was given.
        dims: Axes of the grids.
        known: Those that the bench has already.
        equal: Give all orders as many paths as the baseline has.

    Raises:
        UsageError: An order is unknown, or the baseline is not among them.
    """
    try:
        if equal:
            target = num_paths(find_order(baseline, known) or baseline, dims)
            made, left = equalize(asked, target, dims)
            if left:
                shown = ", ".join(f"{order} (K = {num_paths(order, dims)})" for order in left)
                say(f"note: --equal-paths leaves out {shown}: they cannot have {target} paths")
            asked = list(made.values())
        orders = tuple(dict.fromkeys((*known, *asked)))
        for order in orders:
            num_paths(order, dims)
    except ValueError as error:
        raise UsageError(f"--orders: {error}") from None
    found = find_order(baseline, orders)
    if found is None:
        raise UsageError(f"--baseline {baseline} is none of the orders: {', '.join(orders)}")
    return orders, found


def check_order(task: Any, order: str) -> None:
    """Fail if a model cannot be made with an order.

    Raises:
        UsageError: Names both.
    """
    arguments = arguments_of(task)
    kwargs = {**(arguments["model_kwargs"] or {}), "scan_order": order}
    try:
        type(task)(**{**arguments, "model_kwargs": kwargs})
    except (VimambaError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"--orders {order!r} with {arguments['model']}: {text}") from None


def adopt(plan: Plan, recipes: dict[str, dict[str, Any]], out: Path) -> Plan:
    """Begin a bench in a folder that is ours alone, or add to the one that it holds.

    Raises:
        UsageError: The folder holds something else, or a setting is another one than before.
    """
    before = read_plan(out)
    if before is None and list_entries(out):
        raise UsageError(f"--out {out} holds files but no bench; name another folder")
    if before is not None:
        for name in ("task", "folds", "equal_paths"):
            now, then = getattr(plan, name), getattr(before, name)
            if now != then:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {now}: {out} was begun with {then}; name another "
                                 "--out")  # fmt: skip
    for model, recipe in recipes.items():
        path = out / folder_name(model) / RECIPE
        if path.is_file():
            refuse_changes(recipe, read_yaml(path, UsageError), out)
            continue
        with write_whole(path) as part:
            part.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    plan = before.grown(plan) if before else plan
    if plan.equal_paths and len({num_paths(order, plan.dims) for order in plan.orders}) > 1:
        raise UsageError(f"--equal-paths: {out} was begun with another number of paths")
    plan.write(out)
    return plan


def list_jobs(plan: Plan, recipes: dict[str, dict[str, Any]], out: Path) -> list[Job]:
    """The runs that are not finished."""
    from vimamba.plugins import loaded_plugins

    kept = {
        model: recipes.get(model) or read_yaml(out / folder_name(model) / RECIPE, UsageError)
        for model in plan.models
    }
    jobs = []
    for trial in plan.trials():
        run = trial.folder(out)
        if is_finished(run):
            continue
        settings = deepcopy(kept[trial.model])
        settings["seed_everything"] = trial.seed
        model, data = settings["model"]["init_args"], settings["data"]["init_args"]
        model["model_kwargs"] = {**(model.get("model_kwargs") or {}), "scan_order": trial.order}
        if trial.fold is not None:
            data["fold"] = trial.fold
        jobs.append(Job(trial, run, settings, loaded_plugins()))
    return jobs


def open_pool(given: Namespace) -> Pool:
    """Processes of this machine, or Ray."""
    from vimamba.cli.bench_runs import train

    if given.ray is not None:
        return RayPool(train, given.ray, given.gpus_per_run)
    return LocalPool(train, given.parallel or 1)


def train(jobs: Sequence[Job], given: Namespace) -> int:
    """Train the runs, saying how each ended.

    Returns:
        Exit code.
    """
    from vimamba.cli.bench_report import score_line

    begun, done = time.monotonic(), 0

    def report_end(job: Job, outcome: Outcome) -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - begun) / done * (len(jobs) - done)
        ended = f"failed: {outcome.error}" if outcome.code else score_line(job)
        rest = f"; about {left / 60:.0f} min to go" if left > 90 else ""
        say(f"[{done}/{len(jobs)}] {job.trial}: {ended}, {outcome.seconds:.0f} s{rest}")

    ended = run_all(open_pool(given), jobs, report_end)
    codes = {outcome.code for _, outcome in ended}
    return INTERRUPTED if INTERRUPTED in codes else int(codes != {0})
