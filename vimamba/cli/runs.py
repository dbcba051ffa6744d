"""Reads what a finished run left: its settings, its task and its weights."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from vimamba.cli.errors import UsageError
from vimamba.cli.options import last_value, translate

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI


def find_checkpoint(run: Path, wish: str) -> Path:
    """The checkpoint meant by "best", "last" or a path."""
    read_config(run)
    path = run / "checkpoints" / f"{wish}.ckpt" if wish in ("best", "last") else Path(wish)
    if not path.is_file():
        raise UsageError(f"--ckpt {wish}: there is no file {path}")
    return path


def read_config(run: Path) -> dict[str, Any]:
    """Settings of a run."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{run} is not a run folder: there is no {path}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load_weights(task: torch.nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's weights into a task of the same form."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    task.load_state_dict(content["state_dict"])


def load_task(run: Path, checkpoint: Path) -> Any:
    """Build the task of a run with a checkpoint's weights; the data set is not needed."""
    module, _, name = read_config(run)["model"]["class_path"].rpartition(".")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    hparams = content["hyper_parameters"]
    arguments = {key: value for key, value in hparams.items() if not key.startswith("_")}
    task = getattr(importlib.import_module(module), name)(**{**arguments, "pretrained": False})
    task.load_state_dict(content["state_dict"])
    return task.eval()


def open_run(run: Path, args: list[str], split: str) -> "RecipeCLI":
    """Build data set, task (without weights) and trainer of a run.

    Args:
        run: The run folder.
        args: Options that overrule the run's own, short or typed.
        split: What is going to be scored: all of a data set that `args` name, unless it is split.
    """
    from vimamba.cli.recipe import build

    config = ["--config", str(run / "config.yaml"), "--model.pretrained=false"]
    options = translate([*config, *args])
    other = any(option.partition("=")[0] == "--data.root" for option in options)
    if (run / "split.csv").exists() and not other:
        options.append(f"--data.split_csv={run / 'split.csv'}")
    cli = build(options, run)
    if other and last_value(options, "--data.split_csv") is None:
        cli.datamodule.take_whole(split)
    given = cli.datamodule.class_names
    last = find_checkpoint(run, "last")
    content = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
    trained = content["hyper_parameters"]["class_names"]
    if given != trained:
        raise UsageError(f"the data has the classes {given}, the run was trained on {trained}")
    return cli
