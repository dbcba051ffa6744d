"""The loggers of `--logger`, by name, and the settings that every logger records."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vimamba.errors import UsageError
from vimamba.lightning import loggers
from vimamba.runs import flatten

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI

# our name of the project, for tools that group runs by project
PROJECT = "vimamba"
# MLflow's own default; of Lightning's, a folder, MLflow 3 says that it is no longer maintained
MLFLOW_STORE = "sqlite:///mlflow.db"


def _csv(out: Path) -> Any:
    return loggers.CSVLogger(out, name="csv")


def _tensorboard(out: Path) -> Any:
    return loggers.TensorBoardLogger(out, name="tensorboard", version="")


def _wandb(out: Path) -> Any:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return loggers.WandbLogger(name=out.name, save_dir=out, project=project)


def _mlflow(out: Path) -> Any:
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    address = os.environ.get("MLFLOW_TRACKING_URI", MLFLOW_STORE)
    return loggers.MLFlowLogger(experiment, run_name=out.name, tracking_uri=address)


MAKERS: dict[str, Callable[[Path], Any]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def check_loggers(cli: "RecipeCLI") -> None:
    """Fail on a logger whose package is missing, before anything is written.

    Raises:
        UsageError: Names the logger and what would bring it.
    """
    names = cli.config.logger
    if names and cli.config.trainer.logger is not None:
        raise UsageError("--logger and --trainer.logger: give one of the two")
    for name in names or ():
        if name != "csv" and find_spec(name) is None:
            raise UsageError(f"--logger {name}: its package is missing; run `pip install {name}`")


def start_loggers(cli: "RecipeCLI") -> None:
    """Add the requested loggers to the trainer, and log the run's settings with each.

    Those of Lightning that `--trainer.logger` names stay. Without any, TensorBoard's log is
    written where it is installed.
    """
    trainer: Any = cli.trainer
    names = cli.config.logger
    if names is None and cli.config.trainer.logger is None:
        names = ["tensorboard"] if find_spec("tensorboard") else []
    if names is not None:
        trainer.loggers = [MAKERS[name](cli.out) for name in dict.fromkeys(names)]
    settings = flatten(yaml.safe_load(cli.parser.dump(cli.config)))
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
