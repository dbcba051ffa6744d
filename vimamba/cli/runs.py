"""Reads a finished run: its settings, its task and its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vimamba.checkpoints import CheckpointError, check_finite, read_checkpoint
from vimamba.cli.options import last_value, rename, translate
from vimamba.errors import UsageError, VimambaError
from vimamba.reading import holds_objects

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI


def find_checkpoint(run: Path, requested: str) -> Path:
    """The checkpoint meant by "best", "last" or a path."""
    read_config(run)
    path = (
        run / "checkpoints" / f"{requested}.ckpt"
        if requested in ("best", "last")
        else Path(requested)
    )
    if not path.is_file():
        last = run / "checkpoints" / "last.ckpt"
        hint = f"; --ckpt last takes {last}" if requested == "best" and last.is_file() else ""
        raise UsageError(f"--ckpt {requested}: there is no file {path}{hint}")
    return path


def read_config(run: Path) -> dict[str, Any]:
    """Settings of a run; see `vimamba.cli.settings`."""
    from vimamba.cli.settings import read_settings

    return read_settings(run)


def load_weights(task: torch.nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's weights into a task of the same architecture.

    Raises:
        CheckpointError: The weights cannot be read, do not fit or are not finite.
    """
    _load(task, read_checkpoint(checkpoint), checkpoint)


def _load(task: torch.nn.Module, content: dict[str, Any], checkpoint: Path) -> None:
    state = content.get("state_dict")
    if not isinstance(state, dict):
        raise CheckpointError(f"{checkpoint} has no state_dict, which a run's checkpoint must have")
    try:
        check_finite({k: v for k, v in state.items() if isinstance(v, torch.Tensor)})
        task.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:400]
        raise CheckpointError(f"{checkpoint} does not fit its task: {text}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None


def read_arguments(task: type, content: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Arguments of the task that wrote a checkpoint.

    Raises:
        CheckpointError, UsageError: They are missing, or are not plain values for the task.
    """
    from vimamba.cli.settings import check_arguments, check_model

    hparams = content.get("hyper_parameters")
    where = f"{checkpoint}: hyper_parameters"
    if not isinstance(hparams, dict):
        raise CheckpointError(f"{where} are not there, as in a run's checkpoint")
    arguments = {k: v for k, v in hparams.items() if not str(k).startswith("_")}
    check_arguments(task, arguments, where)
    check_model(arguments.get("model"), where)
    return arguments


def load_task(run: Path, checkpoint: Path) -> Any:
    """Build the task of a run with a checkpoint's weights, without its data set.

    Raises:
        CheckpointError, UsageError: Something is missing, malformed, or names something that a run
        must not name; see docs/SECURITY.md.
    """
    from vimamba.cli.settings import task_class
    from vimamba.tasks import TaskError

    cls = task_class(read_config(run))
    content = read_checkpoint(checkpoint)
    arguments = read_arguments(cls, content, checkpoint)
    try:
        with _named(checkpoint):
            task: Any = cls(**{**arguments, "pretrained": False})
    except TaskError as error:
        raise UsageError(f"{checkpoint}: {error}") from error
    task.hparams["pretrained"] = arguments.get("pretrained", False)
    _load(task, content, checkpoint)
    return task.eval()


@contextmanager
def _named(source: Path) -> Iterator[None]:
    """Turn errors in building from a run's values into one that names their source.

    The values have the right types but are still untrusted: a network's constructor may fail on
    them in any way.
    """
    try:
        yield
    except VimambaError:
        raise
    except Exception as error:
        first: BaseException = error
        while first.__cause__ or first.__context__:
            first = first.__cause__ or first.__context__ or first
        text = " ".join(str(first).split())[:300]
        raise UsageError(
            f"{source}: nothing can be built from its values: {type(first).__name__}: {text}"
        ) from error


def build_run(options: list[str], run: Path) -> "RecipeCLI":
    """`vimamba.cli.recipe.build` with options that include a run's settings.

    Raises:
        UsageError: Nothing can be built from them.
    """
    from vimamba.cli.recipe import build

    with _named(run):
        return build(options, run)


def run_options(run: Path, checkpoint: Path, *, training: bool) -> list[str]:
    """The settings of a run as options.

    Weights come from a checkpoint, so no published weights are downloaded. A model that was named
    by an address is built as the checkpoint describes it.

    Args:
        run: The run folder.
        checkpoint: One of the run's.
        training: Whether to include callbacks, loggers and similar.
    """
    from vimamba.cli.settings import check_trainer, store_settings, task_class, without_parts

    settings = read_config(run)
    settings = settings if training else without_parts(settings)
    check_trainer(run, settings)
    content = read_checkpoint(checkpoint)
    if training and holds_objects(content):
        raise CheckpointError(f"{checkpoint} contains objects that are not plain data")
    arguments = read_arguments(task_class(settings), content, checkpoint)
    own = settings["model"]["init_args"]
    if ":" in str(own.get("model")):
        own.update(model=arguments["model"], model_kwargs=arguments.get("model_kwargs"))
    own["pretrained"] = False
    return ["--config", store_settings(settings)]


def open_run(run: Path, args: list[str], split: str) -> "RecipeCLI":
    """Build data set, task (without weights) and trainer of a run.

    Args:
        run: The run folder.
        args: Options that override the run's own, short or typed.
        split: The split to score: all of a data set that `args` name, unless it is split.
    """
    last = run / "checkpoints" / "last.ckpt"
    last = last if last.is_file() else find_checkpoint(run, "best")
    first, other = run_options(run, last, training=False), last_value(rename(args), "--data.root")
    if (run / "split.csv").exists() and other is None:  # before the options, which may override it
        first.append(f"--data.split_csv={run / 'split.csv'}")
    options = translate([*first, *args])
    cli = build_run(options, run)
    if other is not None and last_value(options, "--data.split_csv") is None:
        cli.datamodule.take_whole(split)
    given, arguments = cli.datamodule.class_names, read_checkpoint(last)["hyper_parameters"]
    trained = arguments.get("class_names")
    # a task may have no classes
    if "class_names" in arguments and given != trained:
        raise UsageError(f"the data has the classes {given}, the run was trained on {trained}")
    return cli
