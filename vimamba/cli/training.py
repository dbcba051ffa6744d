"""`vimamba fit`: the run folder, training, resuming.

Lightning is imported only after the options have been parsed, so that help is fast.
"""

import contextlib
import shutil
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimamba.cli.options import fit_help, translate
from vimamba.console import command_line, say
from vimamba.errors import UsageError
from vimamba.files import lock_folder, write_rows, write_whole
from vimamba.runs import RECORD, update_record

if TYPE_CHECKING:
    from vimamba.cli.callbacks import RunCheckpoints
    from vimamba.cli.recipe import RecipeCLI

CONFIG_HEAD = """\
# The settings of `vimamba fit`. In addition to the logger and callbacks below, a run has its own:
# metrics.csv, run.json, checkpoints/best.ckpt and last.ckpt, and a TensorBoard log if tensorboard
# is installed and both `logger` and `trainer.logger` are null.
"""


def parse_run(args: list[str]) -> tuple[Namespace, list[str]]:
    """Split off the options for the run folder."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume")
    return parser.parse_known_args(args)


def find_resume(run: Namespace) -> tuple[Path | None, Path | None]:
    """Find the run to continue.

    Returns:
        The run folder if it is already known, and the checkpoint to continue; None: a new run.
    """
    if run.resume is None:
        if run.out is not None:
            check_free(run.out)
        return run.out, None
    if run.resume != "auto":
        last = last_of(Path(run.resume))
        if not last.is_file():
            raise UsageError(f"--resume {run.resume}: there is no {last}")
        if run.out is not None and run.out.resolve() != Path(run.resume).resolve():
            raise UsageError(f"--out {run.out}: a run continues in its own folder, {run.resume}")
        return Path(run.resume), last
    if run.out is None:
        raise UsageError("--resume auto needs --out RUN, or name the run: --resume RUN")
    return run.out, last_of(run.out) if last_of(run.out).exists() else None


def last_of(folder: Path) -> Path:
    """The checkpoint from which a run continues."""
    return folder / "checkpoints" / "last.ckpt"


def check_free(folder: Path) -> None:
    """Fail if a folder holds a run."""
    if last_of(folder).exists():
        raise UsageError(
            f"--out {folder} already holds a run; add --resume auto or choose another folder"
        )


def fit(args: list[str], begin: "Callable[[RecipeCLI], object] | None" = None) -> int:
    """Train, score, export and draw pictures.

    Args:
        args: Options, short or typed.
        begin: Called with a new run that is going to be trained, which it may change.

    Returns:
        Exit code.
    """
    if "-h" in args or "--help" in args:
        print(fit_help(), end="")
        return 0
    if any(arg.partition("=")[0] == "--folds" for arg in args):
        raise UsageError(
            "--folds is for `vimamba cross-validate`, which takes the options of `vimamba fit`; "
            "one fold alone is --data.fold 0 --data.folds 5"
        )
    run, rest = parse_run(args)
    folder, checkpoint = find_resume(run)
    first = []
    if folder and checkpoint:
        from vimamba.cli.runs import run_options

        first = run_options(folder, checkpoint, training=True)
        # before the options, which may name another one
        if (folder / "split.csv").exists():
            first.append(f"--data.split_csv={folder / 'split.csv'}")
    typed = translate([*first, *rest])
    from vimamba.cli import reporting
    from vimamba.cli.loggers import check_loggers
    from vimamba.cli.recipe import build
    from vimamba.cli.resuming import check_one_division, check_resumed
    from vimamba.cli.runs import build_run
    from vimamba.tasks.tools import tools_of

    if not checkpoint:
        check_one_division(typed)

    cli = build_run(typed, folder) if checkpoint and folder else build(typed, folder)
    check_loggers(cli)
    if checkpoint and cli.config.lr_find:
        raise UsageError("--lr-find: a run that is resumed has its rate; --lr X gives it another")
    kind = tools_of(type(cli.model))
    if vars(cli.trainer)["fast_dev_run"]:
        kind.show_data(cli.datamodule)
        check_training(cli)
        reporting.dry_run(cli)
        return 0
    with holding(cli, new=checkpoint is None):
        if checkpoint:
            check_resumed(cli, checkpoint)
        kind.show_data(cli.datamodule)
        check_training(cli)
        if cli.config.lr_find:
            apply_lr_find(cli)
        new_split = checkpoint is not None and has_new_split(cli)
        if cli.trainer.is_global_zero:
            prepare_folder(cli, new=checkpoint is None)
            kind.draw_data(cli.datamodule, cli.out)
        say(f"writing to {cli.out}")
        if checkpoint:
            say(f"continuing {checkpoint}")
        elif begin is not None:
            begin(cli)
        if new_split:
            say("the images to score have changed: the search for the best epoch starts again")
        if not train(cli, checkpoint, new_split=new_split):
            say(f"interrupted; continue with: {command_line('fit', '--resume', cli.out)}")
            return 130
        reporting.finish(cli)
    return 0


@contextlib.contextmanager
def holding(cli: "RecipeCLI", *, new: bool) -> Iterator[None]:
    """Lock the run's folder against other runs; the first of several processes holds the lock.

    Args:
        cli: The run.
        new: There must not be a run yet; another one may have started since this was checked.
    """
    if not cli.trainer.is_global_zero:
        yield
        return
    with lock_folder(cli.out):
        if new:
            check_free(cli.out)
        yield


def check_training(cli: "RecipeCLI") -> None:
    """Fail early on settings that would fail during training, and print notes on surprising ones.

    Raises:
        UsageError: A callback monitors a metric that does not exist.
        TaskError: Batches are too small for the network's normalization.
    """
    from vimamba.cli.metric_names import check_monitors

    trainer, data = cli.trainer, cli.datamodule
    check_monitors(cli)
    images = len(data.items("train")) // trainer.world_size
    smallest = min(data.batch_size, images)
    shared = trainer.world_size > 1 and cli.config.trainer.sync_batchnorm
    if smallest == 1 and not shared:
        cli.model.check_batch(1)
    frozen, epochs = cli.model.optim.freeze_epochs, trainer.max_epochs
    if epochs is not None and 0 < epochs <= frozen:
        say(f"note: freeze_epochs={frozen} of {epochs} epochs: what can be pretrained never trains")


def apply_lr_find(cli: "RecipeCLI") -> None:
    """Search for a learning rate and use it as if it had been requested.

    Raises:
        UsageError: None is found.
        TaskError: The rate is not the task's to set.
    """
    from vimamba.cli.run_pictures import draw_rates
    from vimamba.tasks.rate_finder import STEPS, find_rate

    if "optim" not in cli.config.model.init_args:
        raise UsageError(f"--lr-find: {type(cli.model).__name__} has no optim.lr to set")
    if not isinstance(strategy := cli.config.trainer.strategy, str):
        raise UsageError(f"--lr-find goes with a --trainer.strategy by its name, not {strategy}")
    say(f"looking for a learning rate: {STEPS} steps at most, which do not affect the training")
    found = find_rate(cli.model, cli.datamodule, cli.instantiate_trainer)
    picture, rate = cli.out / "lr_find.png", found.suggestion
    if cli.trainer.is_global_zero:
        write_rows(picture.with_suffix(".csv"), found.rows)
        draw_rates(found, picture)
    if rate is None:
        raise UsageError(f"--lr-find: no rate makes the loss fall, see {picture}; give --lr X")
    say(f"--lr {rate:g} is where the loss falls fastest; see {picture}")
    cli.model.lr = cli.config.model.init_args.optim.lr = rate
    # the settings are now those of a run with a given rate
    cli.config.lr_find = None


def has_new_split(cli: "RecipeCLI") -> bool:
    """Whether different images are held out than in the resumed run."""
    before = cli.out / "split.csv"
    given = cli.datamodule.split_csv
    if given is None or not before.exists() or given.resolve() == before.resolve():
        return False
    return given.read_bytes() != before.read_bytes()


def prepare_folder(cli: "RecipeCLI", *, new: bool) -> None:
    """Create the run folder with config.yaml, run.json and, if a split was made, split.csv."""
    from vimamba.data.splits import write_split
    from vimamba.tasks.registry import task_name

    (cli.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name, value in cli.datamodule.inferred_settings().items():
        cli.config.data.init_args[name] = value
    with write_whole(cli.out / "config.yaml") as part:
        part.write_text(CONFIG_HEAD + cli.parser.dump(cli.config), encoding="utf-8")
    catalogue = cli.datamodule.catalogue
    if catalogue.drawn:
        write_split(cli.out / "split.csv", catalogue.splits, cli.datamodule.class_names)
    if new:  # of a run that failed before there was anything to keep
        (cli.out / RECORD).unlink(missing_ok=True)
    update_record(
        cli.out,
        task=task_name(type(cli.model)),
        monitor=cli.model.monitor,
        parameters=sum(parameter.numel() for parameter in cli.model.net.parameters()),
        finished=False,
        stopped=None,
    )


def train(cli: "RecipeCLI", checkpoint: Path | None, *, new_split: bool = False) -> bool:
    """Train to the end or to Ctrl-C.

    Args:
        cli: Data set, task and trainer.
        checkpoint: Where to continue.
        new_split: Ignore earlier scores when choosing the best epoch.

    Returns:
        Whether the end was reached.

    Raises:
        NotFiniteError: Training diverged; the message says which checkpoints remain.
    """
    from vimamba.cli.callbacks import (
        EpochBar,
        EpochLog,
        Patience,
        RunCheckpoints,
        WholeCheckpointIO,
    )
    from vimamba.cli.explaining import settings_errors
    from vimamba.cli.loggers import start_loggers
    from vimamba.lightning import TrainerStatus, callbacks
    from vimamba.tasks import NotFiniteError

    trainer: Any = cli.trainer
    if type(trainer.strategy.checkpoint_io) in WholeCheckpointIO.__bases__:  # no plug-in
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
    log = EpochLog(cli.out / "metrics.csv")
    start_loggers(cli)
    bars = [EpochBar() if type(c) is callbacks.RichProgressBar else c for c in trainer.callbacks]
    checkpoints = RunCheckpoints(cli.out / "checkpoints", cli.model.monitor, new_split=new_split)
    asked, monitor = cli.config.patience, cli.model.monitor
    patience = [] if asked is None else [Patience(monitor, asked, new_split=new_split)]
    # the checkpoint holds what the others have seen
    trainer.callbacks = [*bars, log, *patience, checkpoints]
    try:
        with settings_errors():
            trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # Lightning's status after Ctrl-C, after which it ignores the next one
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return False
    except NotFiniteError as error:
        best = cli.out / "checkpoints" / "best.ckpt"
        kept = f"{best} is the best epoch before it" if best.exists() else "no epoch was finished"
        raise NotFiniteError(f"{error}; {kept}, nothing is exported") from None
    if any(one.is_over for one in patience):
        say(f"stopped: {asked} validations in a row have not raised {monitor}")
        if trainer.is_global_zero:
            update_record(cli.out, stopped="stopped early")
    choose_best(cli, checkpoints)
    return True


def choose_best(cli: "RecipeCLI", checkpoints: "RunCheckpoints") -> None:
    """Score weights averaged at the very end; without any validation, the last epoch is best."""
    from vimamba.cli.metric_names import is_validated
    from vimamba.lightning import callbacks

    trainer: Any = cli.trainer
    best = checkpoints.folder / "best.ckpt"
    averaging = callbacks.StochasticWeightAveraging
    averaged = any(isinstance(callback, averaging) for callback in trainer.callbacks)
    if averaged and is_validated(cli):
        trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
        better = checkpoints.keep_better(trainer)
        say(f"the averaged weights are {'now' if better else 'not'} the best")
        return
    if averaged:
        trainer.save_checkpoint(best)
        say("nothing was validated: the averaged weights count as the best")
    elif best.exists():
        return
    else:
        if trainer.is_global_zero:
            with write_whole(best) as part:
                shutil.copyfile(checkpoints.folder / "last.ckpt", part)
        say("nothing was validated: the last epoch counts as the best")
    if trainer.is_global_zero:
        done = {"step": trainer.global_step, "metric": "epoch", "value": trainer.current_epoch}
        update_record(cli.out, best=done)
