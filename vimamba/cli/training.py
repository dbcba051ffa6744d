"""`vimamba fit`: short options, the run folder, resuming.

Lightning is imported only once the options have been looked at, so that help comes fast.
"""

import os
import signal
import sysconfig
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimamba.cli.errors import UsageError
from vimamba.cli.tables import say

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI

FIT_HELP = """\
vimamba fit: train a classifier

  vimamba fit --data FOLDER --model vim_tiny_patch16_224 --epochs 30
  vimamba fit -c configs/classification/digits_vim.yaml --lr 2e-3 --out runs/digits
  vimamba fit --resume runs/digits                    go on after Ctrl-C, bit for bit

  -c, --config FILE     recipe; several are merged from left to right
  --data PATH           a folder of class folders, a CSV list or a MedMNIST .npz file
  --model NAME          timm model name (vimamba list-models)
  --pretrained          start from the published weights
  --epochs N --lr X --batch-size N --img-size N --seed N --workers N
  --precision P         32-true, bf16-mixed, 16-mixed
  --out RUN             folder to write; runs/<time>_<model> by default
  --resume auto|RUN     continue RUN/checkpoints/last.ckpt; auto: that of --out, if there is one
  --limit N             use N images of each split
  --dry-run             one batch of training and validation, nothing written

Every other setting has a typed name, in recipes and as an option: --model.optim.weight_decay 0.1,
--model.objective.mixup 0.2, --data.augmentation.hflip 0, --trainer.devices 2. See them all with
`--print_config` and your other options; `--model.help vimamba.tasks.Classification` and
`--data.help vimamba.data.ImageFolder` explain them, --help-all those of the trainer.
"""

ALIASES = {
    "-c": "--config",
    "--data": "--data.root",
    "--model": "--model.model",
    "--epochs": "--trainer.max_epochs",
    "--lr": "--model.optim.lr",
    "--batch-size": "--data.batch_size",
    "--img-size": "--data.img_size",
    "--seed": "--seed_everything",
    "--precision": "--trainer.precision",
    "--workers": "--data.workers",
    "--limit": "--data.limit",
    "--help-all": "--help",
}
FLAGS = {"--pretrained": "--model.pretrained=true", "--dry-run": "--trainer.fast_dev_run=true"}
DATA_BY_SUFFIX = {".csv": "vimamba.data.CSVList", ".npz": "vimamba.data.MedMNIST"}


def find_recipe(name: str) -> str:
    """A recipe's file: as named, or one of those that come with the package."""
    source, installed = Path(__file__).parents[2], Path(sysconfig.get_path("data"))
    for folder in (Path(), source / "configs", installed / "share" / "vimamba" / "configs"):
        for path in (
            folder / name,
            folder / f"{name}.yaml",
            folder / name.removeprefix("configs/"),
        ):
            if path.is_file():
                return str(path)
    raise UsageError(f"--config {name}: there is no such recipe")


def translate(args: list[str]) -> list[str]:
    """Short options to the typed ones; a `--data` file also chooses the kind of data set."""
    translated: list[str] = []
    for arg in args:
        name, equals, value = arg.partition("=")
        translated.append(FLAGS.get(arg) or ALIASES.get(name, name) + equals + value)
    for place, arg in enumerate(translated):
        if arg.startswith("--config="):
            translated[place] = f"--config={find_recipe(arg.removeprefix('--config='))}"
        elif arg == "--config" and place + 1 < len(translated):
            translated[place + 1] = find_recipe(translated[place + 1])
    options = [arg.partition("=")[0] for arg in translated]
    if "--config" not in options and "--data.class_path" not in options:
        for place, arg in enumerate(translated):
            name, equals, value = arg.partition("=")
            if name == "--data.root":
                path = value if equals else translated[min(place + 1, len(translated) - 1)]
                kind = DATA_BY_SUFFIX.get(Path(path).suffix.lower())
                return ([f"--data={kind}"] if kind else []) + translated
    return translated


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
        return run.out, last, ["--config", str(run.out / "config.yaml")]
    folder = Path(run.resume)
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise UsageError(f"--resume {folder}: there is no {last}")
    return folder, last, ["--config", str(folder / "config.yaml")]


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

    cli = build(typed, folder)
    reporting.show_data(cli.datamodule)
    if vars(cli.trainer)["fast_dev_run"]:
        reporting.dry_run(cli)
        return 0
    prepare_folder(cli)
    say(f"writing to {cli.out}")
    if checkpoint:
        say(f"continuing {checkpoint}")
    if not train(cli, checkpoint):
        say(f"interrupted; continue with: vimamba fit --resume {cli.out}")
        return 130
    reporting.finish(cli)
    return 0


def prepare_folder(cli: "RecipeCLI") -> None:
    """Make the run folder with config.yaml and, where a split was drawn, split.csv."""
    from vimamba.data.splits import write_split

    (cli.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    part = cli.out / ".config.part"
    part.write_text(cli.parser.dump(cli.config), encoding="utf-8")
    os.replace(part, cli.out / "config.yaml")
    catalogue = cli.datamodule.catalogue
    if catalogue.drawn:
        write_split(cli.out / "split.csv", catalogue.splits, catalogue.class_names)


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
