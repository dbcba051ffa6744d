"""The short options of `vimamba fit`, and the typed ones they stand for."""

import sysconfig
from pathlib import Path

from vimamba.cli.errors import UsageError

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
