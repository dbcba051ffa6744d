"""`vimamba validate` and `vimamba test`: scores of a finished run."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from vimamba.cli.options import rename
from vimamba.errors import UsageError

HELP = """\
Scores a run's checkpoint on its {split} split and prints a table of all classes.

  vimamba {name} runs/digits
  vimamba {name} runs/digits --tta flips --ckpt last --batch-size 128 --workers 4

Other options are those of `vimamba fit` for data, scores and devices. With --data
FOLDER, all images of another folder are scored, or its {split} folder if it has one; with
--data.split_csv FILE, those listed as {split} in the file. A run can be scored while it trains.
"""

# options of `vimamba fit` that do not affect the scores of existing weights
OF_TRAINING = (
    "--task",
    "--patience",
    "--lr_find",
    "--logger",
    "--model.class_path",
    "--model.model",
    "--model.head",
    "--model.pretrained",
    "--model.drop_path_rate",
    "--model.aux",
    "--model.score",
    "--model.optim",
    "--model.objective.mixup",
    "--model.objective.cutmix",
    "--model.objective.mix_prob",
    "--model.objective.label_smoothing",
    "--model.objective.aux_weights",
    "--model.grad_checkpointing",
    "--data.augmentation",
    "--data.val_fraction",
    "--data.test_fraction",
    "--data.fold",
    "--data.folds",
    "--data.fold_as",
    "--data.group_pattern",
    "--trainer.fast_dev_run",
    "--trainer.max_epochs",
    "--trainer.min_epochs",
    "--trainer.max_steps",
    "--trainer.min_steps",
    "--trainer.max_time",
    "--trainer.limit_train_batches",
    "--trainer.overfit_batches",
    "--trainer.val_check_interval",
    "--trainer.check_val_every_n_epoch",
    "--trainer.num_sanity_val_steps",
    "--trainer.accumulate_grad_batches",
    "--trainer.gradient_clip_val",
    "--trainer.gradient_clip_algorithm",
    "--trainer.sync_batchnorm",
    "--trainer.detect_anomaly",
    "--trainer.reload_dataloaders_every_n_epochs",
    "--trainer.enable_checkpointing",
)


def check_split(data: Any, split: str, run: Path) -> None:
    """Fail if a run's data lacks a split, suggesting the command for the splits it has.

    Raises:
        UsageError: The split is missing.
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
    check_options(name, rest)

    from vimamba.cli.runs import find_checkpoint, open_run

    checkpoint = find_checkpoint(given.run, given.ckpt)
    cli = open_run(given.run, rest, split)
    from vimamba.cli.reporting import score, write_metrics
    from vimamba.console import say
    from vimamba.tasks.tools import tools_of

    check_split(cli.datamodule, split, given.run)
    cli.datamodule.dataset(split)
    for note in cli.datamodule.notes() if cli.datamodule.whole else ():
        say(note)
    cli.model.tta = given.tta
    report = {"tta": given.tta, **score(cli, split, checkpoint)}
    results = given.results or given.run / "metrics.json"
    kind = tools_of(type(cli.model))
    write_metrics(results, split, kind.write_results(report, split, results.parent))
    kind.show_scores(split, report)
    print(kind.headline(split, report))
    if split == "val" and checkpoint.name == "best.ckpt":
        print(
            "note: the best epoch was chosen on these images, so the scores are optimistic; "
            "`vimamba cross-validate` chooses it on others"
        )
    print(f"written to {results}")
    return 0


def check_options(name: str, options: list[str]) -> None:
    """Fail on options without effect.

    Args:
        name: "validate" or "test".
        options: As given.

    Raises:
        UsageError: Names the option.
    """
    other = "--trainer.limit_test_batches" if name == "validate" else "--trainer.limit_val_batches"
    for given, typed in zip(options, rename(options), strict=True):
        option = typed.partition("=")[0].rstrip("+")
        idle = (*OF_TRAINING, other)
        if any(option == known or option.startswith(f"{known}.") for known in idle):
            short = given.partition("=")[0]
            raise UsageError(
                f"{short} does not affect the scores of a run: it is a training option"
            )
