"""`vimamba validate` and `vimamba test`: scores of a finished run."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from vimamba.cli.errors import UsageError

HELP = """\
Scores a run's checkpoint on its {split} split and prints a table of all classes.

  vimamba {name} runs/digits
  vimamba {name} runs/digits --tta flips --ckpt last --batch-size 128 --workers 4

Other options are those of `vimamba fit`. With --data FOLDER, all images of another folder are
scored, or its {split} folder if it has one.
"""


def check_split(data: Any, split: str, run: Path) -> None:
    """Fail on a split that a run's data does not have, with the command that fits what it has.

    Raises:
        UsageError: It is not there.
    """
    have = data.catalogue.splits
    if split not in have:
        other, command = ("val", "validate") if split == "test" else ("test", "test")
        hint = f"; score the {other} split: vimamba {command} {run}" if other in have else ""
        raise UsageError(f"{data.root} has no {split} split, only {sorted(have)}{hint}")


def evaluate(name: str, args: list[str]) -> int:
    """Score a run.

    Args:
        name: "validate" or "test".
        args: The run and options.

    Returns:
        Exit code.
    """
    split = "test" if name == "test" else "val"
    parser = ArgumentParser(
        prog=f"vimamba {name}",
        description=HELP.format(name=name, split=split),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder that `vimamba fit` wrote")
    parser.add_argument("--ckpt", default="best", help="best (default), last or a file")
    parser.add_argument(
        "--tta",
        default="none",
        choices=("none", "hflip", "flips"),
        help="average over mirrored views: left-right, or all four",
    )
    parser.add_argument("--results", type=Path, help="JSON to write; RUN/metrics.json by default")
    given, rest = parser.parse_known_args(args)

    from vimamba.cli.runs import find_checkpoint, open_run

    checkpoint = find_checkpoint(given.run, given.ckpt)
    cli = open_run(given.run, rest, split)
    from vimamba.cli.reporting import kind_of, score, write_metrics

    check_split(cli.datamodule, split, given.run)
    cli.model.tta = given.tta
    report = {"tta": given.tta, **score(cli, split, checkpoint)}
    results = given.results or given.run / "metrics.json"
    kind = kind_of(cli.model)
    write_metrics(results, split, kind.write_results(report, split, results.parent))
    kind.show_scores(split, report)
    print(kind.headline(split, report))
    if split == "val" and checkpoint.name == "best.ckpt":
        print(
            "note: the best epoch was chosen on these images, so the scores are a little too good; "
            "`vimamba cross-validate` chooses it on others"
        )
    print(f"written to {results}")
    return 0
