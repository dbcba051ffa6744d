"""Recipes: typed settings through LightningCLI, with settings that depend on others linked."""

import inspect
import os
import re
import time
from argparse import ArgumentError
from pathlib import Path
from typing import Any, cast

import yaml

import vimamba.data
import vimamba.tasks  # noqa: F401  the class names of recipes
from vimamba.cli.explaining import explain, settings_errors, typed_options
from vimamba.cli.options import find_class, last_value
from vimamba.cli.settings import BESIDE, store_settings
from vimamba.console import hide_hints, is_terminal
from vimamba.data.base import ImageData
from vimamba.errors import UsageError
from vimamba.lightning import (
    LightningArgumentParser,
    LightningCLI,
    LightningDataModule,
    LightningModule,
    name_in_use,
)
from vimamba.sizes import read_size
from vimamba.tasks import Classification, Task
from vimamba.tasks.registry import class_path

RUN_VARIABLE = "VIMAMBA_RUN_FOLDER"
# if neither epochs nor steps are given
EPOCHS = 30


class RecipeCLI(LightningCLI):
    """LightningCLI with a default task and data set, and linked settings.

    Args:
        args: Typed options.
        out: Run folder; named after the time and model if None.
    """

    def __init__(self, args: list[str], out: Path | None) -> None:
        self.out = out or Path()
        self.given_out = out
        if last_value(args, "--trainer.default_root_dir") is not None:
            raise UsageError("--trainer.default_root_dir: --out RUN names the folder of a run")
        self.parts = choose_parts(args)
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            run=False,
            args=args,
            parser_kwargs={"exit_on_error": False, "prog": "vimamba fit"},
            trainer_defaults={
                "max_epochs": None,
                "gradient_clip_val": 1.0,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                "log_every_n_steps": 10,
                "logger": None,
                "enable_checkpointing": False,
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the defaults and links of the requested task."""
        for name, hint in BESIDE.items():
            parser.add_argument(f"--{name}", type=hint, default=None)
        task, data = self.parts
        parser.set_defaults({"model": {"class_path": task}, "data": {"class_path": data}})
        cls, offered = find_class(task), find_class(data)
        known = inspect.signature(cls).parameters
        for name in getattr(cls, "of_the_data", Task.of_the_data):
            if name in known and (hasattr(offered, name) or name == "img_size"):
                target = f"model.init_args.{name}"
                parser.link_arguments(f"data.{name}", target, apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=int)

    def before_instantiate_classes(self) -> None:
        """Fill in the model's published settings and the run folder."""
        data, model = self.config.data.init_args, self.config.model.init_args
        task: Any = find_class(self.parts[0])
        cfg = task.find_cfg(model.model, model.get("model_kwargs"))
        if "img_size" in data:
            wanted = data.img_size
            if wanted is None:
                wanted = (model.get("model_kwargs") or {}).get("img_size") or cfg.input_size[1:]
            # no patch size if the data proposes one
            if wanted != ():
                size = read_size(wanted, task.axes)
                data.img_size = size if isinstance(size, int) else list(size)
        self.published = cfg if model.get("pretrained") else None
        data.root = os.path.abspath(data.root)
        self.out = self.given_out or name_run(model.model)
        self.config.trainer.default_root_dir = str(self.out)
        strategy = getattr(self.config.trainer.strategy, "init_args", None)
        if strategy is not None and strategy.get("save_distributed_checkpoint"):
            option = "--trainer.strategy.save_distributed_checkpoint"
            raise UsageError(f"{option} must be false: a run keeps each checkpoint in one file")
        self._set_length()
        self._check_trainer()

    def _check_trainer(self) -> None:
        """Fail on trainer settings that our runs would not follow."""
        trainer = self.config.trainer
        callbacks = (
            trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        )
        names = [str(getattr(callback, "class_path", "")) for callback in callbacks]
        if any(name.endswith("Checkpoint") for name in names):  # in addition to ours
            trainer.enable_checkpointing = True
        if trainer.barebones:
            raise UsageError("--trainer.barebones: a run needs its metrics and checkpoints")
        if trainer.use_distributed_sampler:
            raise UsageError(
                "--trainer.use_distributed_sampler: leave it unset, images are already distributed"
            )
        if trainer.accumulate_grad_batches < 1:
            raise UsageError(
                f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} must be at "
                "least 1"
            )
        if trainer.limit_train_batches == 0:
            raise UsageError("--trainer.limit_train_batches 0 leaves nothing to train on")

    def _set_length(self) -> None:
        """Set the number of epochs: the default, or no limit if a number of steps is given."""
        trainer, optim = self.config.trainer, self.config.model.init_args.get("optim")
        if trainer.max_steps != -1 and trainer.max_steps < 1:
            raise UsageError(f"--trainer.max_steps {trainer.max_steps} must be at least 1")
        if trainer.max_epochs is None:
            trainer.max_epochs = EPOCHS if trainer.max_steps == -1 else -1
        if trainer.max_epochs != -1 and trainer.max_epochs < 1:
            raise UsageError(f"--epochs {trainer.max_epochs} must be at least 1")
        endless = trainer.max_epochs == trainer.max_steps == -1
        if endless and optim is not None and optim.schedule != "constant":
            raise UsageError(
                "--epochs -1 needs an end toward which the learning rate falls: "
                "--trainer.max_steps N, or --model.optim.schedule constant"
            )

    def instantiate_classes(self) -> None:
        """Build the parts, with a progress bar on a terminal only if nothing else is requested."""
        trainer, requested = self.config.trainer, self.config.trainer.enable_progress_bar
        trainer.enable_progress_bar = is_terminal() if requested is None else requested
        logger = trainer.logger
        trainer.logger = logger or False  # None would mean Lightning's default
        super().instantiate_classes()
        data, cfg = self.datamodule, self.published
        if cfg is not None and isinstance(data, ImageData):
            data.take_published(cfg.mean, cfg.std, cfg.crop_pct)
        trainer.enable_progress_bar, trainer.logger = requested, logger


def choose_parts(options: list[str]) -> tuple[str, str]:
    """The classes of task and data set that options and recipes name last, or the defaults.

    The parser's defaults are taken from these classes, because jsonargparse would pass the
    arguments of a default class on to another one.
    """
    found: dict[str, str] = {}
    for place, option in enumerate(options):
        name, _, value = option.partition("=")
        if name == "--config":
            file = Path(value or options[place + 1])
            recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
            for part in ("model", "data"):
                content = (recipe or {}).get(part)
                if isinstance(content, dict) and "class_path" in content:
                    found[part] = content["class_path"]
        elif name in ("--model.class_path", "--data.class_path"):
            found[name[2:].split(".")[0]] = value or options[place + 1]
    task = found.get("model", class_path(Classification))
    return task, found.get("data") or cast(Any, find_class(task)).find_data(Path())


def use_one_lightning(options: list[str]) -> list[str]:
    """Rename Lightning's classes in options and recipes to the Lightning package in use."""
    changed: list[str] = []
    for option in options:
        follows = changed[-1:] == ["--config"]
        name, equals, value = ("", "", option) if follows else option.rpartition("=")
        if follows or name == "--config":
            recipe = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            renamed = name_in_use(recipe)
            value = value if renamed == recipe else store_settings(renamed)
        changed.append(name + equals + name_in_use(value))
    return changed


def name_run(model: str) -> Path:
    """Name a new run folder; other processes of a distributed run get the name from the first.

    Raises:
        UsageError: An external launcher started the processes, so each would choose its own name.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    named = RUN_VARIABLE in os.environ
    if not named and ("LOCAL_RANK" in os.environ or tasks != "1"):
        raise UsageError("there are several processes: name the run's folder with --out")
    if not named or "LOCAL_RANK" not in os.environ:
        name = re.sub(r"[^\w.-]+", "_", model)
        os.environ[RUN_VARIABLE] = f"runs/{time.strftime('%Y%m%d-%H%M%S')}_{name}"
    return Path(os.environ[RUN_VARIABLE])


def build(args: list[str], out: Path | None = None) -> RecipeCLI:
    """Parse typed options and build data set, task and trainer.

    Raises:
        UsageError: An unknown or ill-typed option, or one that Lightning refuses.
    """
    hide_hints()
    args = use_one_lightning(args)
    try:
        with settings_errors():
            return RecipeCLI(args, out)
    except ArgumentError as error:
        task, data = choose_parts(args)
        linked = {
            f"{part}.{name}" for part in ("model", "data") for name in ("seed", "class_counts")
        }
        linked |= {f"model.{name}" for name in getattr(find_class(task), "of_the_data", ())}
        known = typed_options(find_class(task), find_class(data))
        known = [option for option in known if option not in linked]
        raise UsageError(explain(error, args, known)) from None
