"""`vimamba cross-validate`: every fold is its own run, then all held-out cases are scored.

Each fold is trained by `vimamba fit` in its own process, so a fold behaves like any run, on several
devices too, and leaves nothing in memory for the next.
"""

import ctypes
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import yaml

from vimamba.cli.begun import check_alone, refuse_changes
from vimamba.cli.folds import Record, fold_folder, read_record
from vimamba.cli.options import translate
from vimamba.console import command_line, say, show_table
from vimamba.errors import UsageError
from vimamba.files import list_entries, lock_folder, write_whole
from vimamba.reading import read_yaml
from vimamba.tasks.tools import fold_tools_of

HELP = """\
Trains one network per fold of the data and scores each image by the one that never saw it.

  vimamba cross-validate --data photos --model vim_tiny_patch16_224 --folds 5 --out cv/photos
  vimamba cross-validate --task segmentation --data ct --model vm_unet --out cv/ct
  vimamba cross-validate --resume cv/ct          continue after Ctrl-C; so does the same command
  vimamba predict cv/ct new/ --out masks         the mean of all folds' probabilities

All other options are those of `vimamba fit`. OUT/fold0, OUT/fold1 ... are ordinary runs. Images of
one group (a patient, a volume) are never in two folds, nor in a fold's training and its val split;
--data.group_pattern "(p\\d+)_" finds groups in names. Images of the data set's own test split are
not used.
"""
# the settings of every fold; not config.yaml, which makes a folder a run
RECIPE = "recipe.yaml"
# Linux: the signal that a process gets when its parent ends
PR_SET_PDEATHSIG = 1
# the settings of the data that decide which images a fold has
DIVISION = ("fold", "folds", "fold_as", "val_fraction", "split_csv")


def cross_validate(args: list[str]) -> int:
    """Train and score all folds, or continue where an earlier call stopped.

    Args:
        args: Options of this command and of `vimamba fit`.

    Returns:
        Exit code.
    """
    given, rest = parse(args)
    check_alone("cross-validate", "--trainer.devices starts the others")
    out: Path = given.out
    requested = Record(given.folds or 5, given.choose or "inner")
    if given.resume:
        before = read_record(out)
        if before is None:
            raise UsageError(f"--resume {out}: there is no cross-validation")
        requested = Record(before.folds, before.choose)
        rest = ["--config", str(out / RECIPE)]
    config = prepare(requested, rest, out)
    with lock_folder(out):
        record = adopt(requested, config, out)
        for fold in range(record.folds):
            if fold in record.finished and fold_folder(out, fold).is_dir():
                continue
            code = train_fold(out, fold, record.folds)
            if code == 130:
                say(
                    f"interrupted; continue with: {command_line('cross-validate', '--resume', out)}"
                )
            if code:
                return code
            record.finished = sorted({*record.finished, fold})
            record.write(out)
        from vimamba.cli.fold_report import report_folds

        report_folds(out, record)
    return 0


def parse(args: list[str]) -> tuple[Namespace, list[str]]:
    """Split off the options that do not belong to `vimamba fit`.

    Raises:
        UsageError: A value is invalid, or an option is for a single run only.
    """
    parser = ArgumentParser(
        prog="vimamba cross-validate",
        description=HELP,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--resume", type=Path, metavar="OUT", help="continue a cross-validation")
    parser.add_argument("--folds", type=int, help="number of folds; 5 by default")
    parser.add_argument(
        "--choose",
        choices=("inner", "last"),
        help="the epoch to score: the best one on a val split that is drawn from the fold's own "
        "training images (default), or the last one",
    )
    given, rest = parser.parse_known_args(args)
    names = {option.partition("=")[0] for option in rest}
    for name in sorted({f"--data.{key}" for key in DIVISION if key != "val_fraction"} & names):
        raise UsageError(f"{name} is for `vimamba fit`: each fold has its own")
    if "--dry-run" in names:
        raise UsageError("--dry-run is for `vimamba fit`: try the options there first")
    if given.choose == "last" and "--data.val_fraction" in names:
        raise UsageError("--data.val_fraction needs --choose inner: nothing is held out for last")
    if given.folds is not None and given.folds < 2:
        raise UsageError(f"--folds {given.folds} must be at least 2")
    if given.resume is not None:
        if rest or (given.out, given.folds, given.choose) != (None, None, None):
            raise UsageError("--resume OUT goes on with the options of before; give no others")
        given.out = given.resume
    if given.out is None:
        raise UsageError("--out FOLDER is required: the same command then goes on where it stopped")
    return given, rest


def prepare(requested: Record, options: list[str], out: Path) -> str:
    """Check data and settings before anything is trained or written.

    Args:
        requested: The requested cross-validation.
        options: Options of `vimamba fit`, short or typed.
        out: The folder to write.

    Returns:
        The recipe of every fold, without its number: YAML.

    Raises:
        UsageError: An option cannot be used.
        DataError: A fold cannot be trained or scored.
    """
    from vimamba.cli.recipe import build

    typed = [*translate(options), "--data.fold=0", f"--data.folds={requested.folds}"]
    typed += ["--data.fold_as=test"]
    typed += ["--data.val_fraction=0"] if requested.choose == "last" else []
    cli = build(typed, out)
    fold_tools_of(type(cli.model))
    cli.model.check_folds()
    show_folds(cli.datamodule, requested)
    for name, value in cli.datamodule.inferred_settings().items():
        cli.config.data.init_args[name] = value
    return cli.parser.dump(cli.config)


def adopt(requested: Record, config: str, out: Path) -> Record:
    """Resume what the folder holds, or start from scratch.

    Args:
        requested: What is asked for.
        config: The recipe of every fold.
        out: The folder.

    Raises:
        UsageError: The folder holds something else.
    """
    path, before = out / RECIPE, read_record(out)
    if before is None and list_entries(out):
        raise UsageError(f"--out {out} holds files but no cross-validation; name another folder")
    if before is not None and path.is_file():
        kept = read_yaml(path, UsageError)
        refuse_others(requested, before, yaml.safe_load(config), kept, out)
        return before
    requested.write(out)
    with write_whole(path) as part:
        part.write_text(config, encoding="utf-8")
    return requested


def show_folds(data: Any, record: Record) -> None:
    """Fail on a fold that cannot be trained or scored; print the contents of each."""
    rows = []
    splits = ("train", "val", "test") if record.choose == "inner" else ("train", "test")
    for fold in range(record.folds):
        data.take_fold(fold)
        data.check_division()
        rows.append([fold, *(str(data.count_units(split)) for split in splits)])
    data.take_fold(0)
    chosen = "the best on val" if record.choose == "inner" else "the last"
    show_table(f"{data.root}: {data.unit} of each fold; the epoch that counts is {chosen}",
               ["fold", *(s if s != "test" else "held out" for s in splits)], rows)  # fmt: skip


def refuse_others(
    requested: Record, before: Record, config: dict[str, Any], kept: dict[str, Any], out: Path
) -> None:
    """Fail if a folder was started with other options."""
    for name in ("folds", "choose"):
        now, then = getattr(requested, name), getattr(before, name)
        if now != then:
            raise UsageError(f"--{name} {now}: {out} was begun with {then}; name another --out")
    refuse_changes(config, kept, out)


def train_fold(out: Path, fold: int, folds: int) -> int:
    """Train one fold, or resume it.

    Returns:
        Exit code: 130 after Ctrl-C.
    """
    folder = fold_folder(out, fold)
    say(f"\nfold {fold}, {fold + 1} of {folds}")
    if (folder / "checkpoints" / "last.ckpt").is_file():
        code = run_fit(["--resume", str(folder)])
    else:
        config = ["--config", str(out / RECIPE), f"--data.fold={fold}"]
        code = run_fit([*config, "--out", str(folder)])
    if code not in (0, 130):
        say(f"fold {fold} ended with exit code {code}; the same command goes on with it")
    return code


def fit_command(args: list[str]) -> list[str]:
    """`vimamba fit` in a form that Lightning can start again for more devices."""
    return [sys.executable, "-m", "vimamba", "fit", *args]


def run_fit(args: list[str]) -> int:
    """Run `vimamba fit` in its own process, which gets each stop signal once.

    On Linux it is also stopped if this process is killed.

    Returns:
        Its exit code.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def follow() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGINT)

    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: object) -> None:
        for process in started:
            process.send_signal(number)

    # before the start, because a process inherits its parent's ignored signals
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # import nothing from the working directory
    try:
        started.append(
            subprocess.Popen(
                fit_command(args), env=environment, start_new_session=True, preexec_fn=follow
            )
        )
        code = started[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
