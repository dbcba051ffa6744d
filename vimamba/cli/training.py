"""`vimamba fit`: the run folder, training, resuming.

Lightning is imported only once the options have been looked at, so that help comes fast.
"""

import os
import signal
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimamba.cli.errors import UsageError
from vimamba.cli.options import FIT_HELP, translate
from vimamba.cli.tables import command_line, say

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI


def parse_run(args: list[str]) -> tuple[Namespace, list[str]]:
    """Split off the options that are about the run folder."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume")
    return parser.parse_known_args(args)


def find_resume(run: Namespace) -> tuple[Path | None, Path | None, list[str]]:
    """What to continue.

    Returns:
        The run folder if it is known already, the checkpoint to continue (None: a new run), and
        options to put first.
    """
    from vimamba.cli.runs import run_options

    if run.resume is None or run.resume == "auto":
        last = run.out / "checkpoints" / "last.ckpt" if run.out else None
        if run.resume is None:
            if last is not None and last.exists():
                raise UsageError(
                    f"--out {run.out} holds a run already; add --resume auto or name another folder"
                )
            return run.out, None, []
        if run.out is None:
            raise UsageError("--resume auto needs --out RUN, or name the run: --resume RUN")
        if last is None or not last.exists():
            return run.out, None, []
        return run.out, last, run_options(run.out, last, training=True)
    folder = Path(run.resume)
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise UsageError(f"--resume {folder}: there is no {last}")
    return folder, last, run_options(folder, last, training=True)


def fit(args: list[str]) -> int:
    """Train, score, export and draw.

    Args:
        args: Options, short or typed.

    Returns:
        Exit code.
    """
    if "-h" in args or "--help" in args:
        print(FIT_HELP, end="")
        return 0
    run, rest = parse_run(args)
    folder, checkpoint, first = find_resume(run)
    typed = translate([*first, *rest])
    if checkpoint and (checkpoint.parents[1] / "split.csv").exists():
        typed.append(f"--data.split_csv={checkpoint.parents[1] / 'split.csv'}")
    from vimamba.cli import reporting
    from vimamba.cli.recipe import build
    from vimamba.cli.runs import build_run, read_config

    cli = build_run(typed, folder) if checkpoint and folder else build(typed, folder)
    if checkpoint:  # nothing was fetched, but the run started from what it started from
        started = read_config(checkpoint.parents[1])["model"]["init_args"].get("pretrained", False)
        cli.config.model.init_args["pretrained"] = cli.model.hparams["pretrained"] = started
    kind = reporting.kind_of(cli.model)
    kind.show_data(cli.datamodule)
    if vars(cli.trainer)["fast_dev_run"]:
        reporting.dry_run(cli)
        return 0
    if cli.trainer.is_global_zero:
        prepare_folder(cli)
        kind.draw_data(cli.datamodule, cli.out)
    say(f"writing to {cli.out}")
    if checkpoint:
        say(f"continuing {checkpoint}")
    if not train(cli, checkpoint):
        say(f"interrupted; continue with: {command_line('fit', '--resume', cli.out)}")
        return 130
    reporting.finish(cli)
    return 0


def prepare_folder(cli: "RecipeCLI") -> None:
    """Make the run folder with config.yaml and, where a split was drawn, split.csv."""
    from vimamba.data.splits import write_split

    (cli.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name, value in cli.datamodule.settled().items():
        cli.config.data.init_args[name] = value
    part = cli.out / ".config.part"
    part.write_text(cli.parser.dump(cli.config), encoding="utf-8")
    os.replace(part, cli.out / "config.yaml")
    catalogue = cli.datamodule.catalogue
    if catalogue.drawn:
        write_split(cli.out / "split.csv", catalogue.splits, cli.datamodule.class_names)


def train(cli: "RecipeCLI", checkpoint: Path | None) -> bool:
    """Train to the end or to Ctrl-C.

    Args:
        cli: Data set, task and trainer.
        checkpoint: Where to continue.

    Returns:
        Whether the end was reached.
    """
    from pytorch_lightning.callbacks import RichProgressBar
    from pytorch_lightning.loggers import TensorBoardLogger
    from pytorch_lightning.trainer.states import TrainerStatus

    from vimamba.cli.callbacks import EpochBar, EpochLog, RunCheckpoints

    trainer: Any = cli.trainer
    log = EpochLog(cli.out / "metrics.csv")
    if not trainer.loggers and find_spec("tensorboard"):
        trainer.loggers = [TensorBoardLogger(cli.out, name="tensorboard", version="")]
    bars = [EpochBar() if type(c) is RichProgressBar else c for c in trainer.callbacks]
    trainer.callbacks = [*bars, log, RunCheckpoints(cli.out / "checkpoints", cli.model.monitor)]
    try:
        trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # what Lightning makes of Ctrl-C, after which it ignores the next one
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return False
    return True
