"""`vimamba benchmark`: times ops and models next to the usual alternatives."""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vimamba.cli.inquiries import check_at_least, complete_options, make_parser
from vimamba.console import say, show_table
from vimamba.errors import UsageError
from vimamba.files import check_writable
from vimamba.sizes import read_size

if TYPE_CHECKING:
    from vimamba.benchmark.ops import Extra
    from vimamba.benchmark.timing import Result

HELP = """\
Times the selective scan (ops) or whole models (models). Candidates alternate; medians are shown,
and the ratio of each to the first. If there is a GPU, everything runs on it, in bfloat16.

  vimamba benchmark ops --backward --threads 1
  vimamba benchmark models vmamba_tiny_s1l8 swin_tiny_patch4_window7_224 --sizes 224 1024 --train
"""
# options of each kind, with defaults
OPTIONS = {
    "ops": {"backward": False, "cases": ""},
    "models": {"sizes": [224], "batch_size": 1, "train": False},
}


def parse(args: list[str]) -> Namespace:
    """Options of both kinds."""
    parser = make_parser("benchmark", HELP)
    parser.add_argument("what", choices=("ops", "models"))
    parser.add_argument("names", nargs="*", help="models: timm names, compared with the first")
    parser.add_argument("--sizes", nargs="+", help="models: 224 (default), 96x160 ..., pixels")
    parser.add_argument("--batch-size", type=int, help="models: images per step; 1 by default")
    both = "forward and backward"
    parser.add_argument("--train", action="store_true", default=None, help=f"models: {both}")
    parser.add_argument("--backward", action="store_true", default=None, help=f"ops: {both}")
    parser.add_argument("--cases", help="ops: only cases whose name contains this")
    parser.add_argument("--threads", type=int, help="CPU threads; all by default")
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long per case")
    parser.add_argument("--csv", type=Path, help="also write the results to this file")
    parser.add_argument("--png", type=Path, help="also plot them to this file")
    given = parser.parse_args(args)
    if given.what == "ops" and given.names:
        raise UsageError(f"{given.names[0]}: names are for models; --cases chooses among the ops")
    complete_options(given, given.what, OPTIONS)
    check_at_least(given, batch_size=1, threads=1)
    if given.sizes:
        given.sizes = [read_size(size, name="--sizes") for size in given.sizes]
    if not 0 < given.seconds < float("inf"):
        raise UsageError(f"--seconds {given.seconds} must be a positive number")
    for path in filter(None, (given.csv, given.png)):
        check_writable(path.parent)
    return given


def benchmark(
    args: list[str], extras: Mapping[str, "Extra"] | None = None, floor: str | None = None
) -> int:
    """Run a benchmark; returns the exit code.

    Args:
        args: Options.
        extras: Additional candidates for the ops, by name.
        floor: Which of them is the lower bound.
    """
    given = parse(args)
    import torch

    from vimamba.benchmark.timing import describe_machine, draw, write_csv

    if given.threads:
        torch.set_num_threads(given.threads)
    machine = describe_machine()
    say(machine)
    groups = _ops(given, extras or {}, floor) if given.what == "ops" else _models(given)
    results = _show(groups)
    if given.csv:
        write_csv(given.csv, results, machine)
    if given.png:
        draw(given.png, results, machine)
    for path in filter(None, (given.csv, given.png)):
        say(f"written to {path}")
    return 0


def _ops(
    given: Namespace, extras: Mapping[str, "Extra"], floor: str | None
) -> Iterable[list["Result"]]:
    from vimamba.benchmark.ops import CASES, benchmark_ops

    cases = [case for case in CASES if given.cases.lower() in case.name.lower()]
    if not cases:
        names = ", ".join(case.name for case in CASES)
        raise UsageError(f"--cases {given.cases} fits none of: {names}")
    return benchmark_ops(
        extras=dict(extras),
        backward=given.backward,
        seconds=given.seconds,
        cases=cases,
        floor=floor,
    )


def _models(given: Namespace) -> Iterable[list["Result"]]:
    from vimamba.benchmark.models import MODELS, benchmark_models
    from vimamba.tasks.backbone import check_name

    names = given.names or list(MODELS)
    for name in names:
        check_name(name)
    options = {"batch": given.batch_size, "train": given.train, "seconds": given.seconds}
    return benchmark_models(names, given.sizes, **options)


def _show(groups: Iterable[list["Result"]]) -> list["Result"]:
    """Print the table of each case as soon as it is done."""
    from vimamba.benchmark.timing import as_rows

    results = []
    for group in groups:
        heads, rows = as_rows(group)
        show_table(group[0].case, heads[1:], [row[1:] for row in rows])
        results += group
    return results
