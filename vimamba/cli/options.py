"""The short options of `vimamba fit`, and their typed equivalents."""

import importlib
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from vimamba.errors import UsageError

FIT_HELP = """\
vimamba fit: train a network on a folder of data: classes, masks, changes, volumes, pairs

  vimamba fit --data FOLDER --model vim_tiny_patch16_224 --epochs 30
  vimamba fit --task segmentation --data FOLDER --model vm_unet
  vimamba fit --task volumes --data FOLDER --model vss_unet_3d_tiny
  vimamba fit --task registration --data FOLDER --model mambamorph
  vimamba fit -c configs/classification/digits_vim.yaml --lr 2e-3 --out runs/digits
  vimamba fit --resume runs/digits                    continue after Ctrl-C, bit for bit
  vimamba cross-validate ...                          the same for every fold of the data

  -c, --config FILE     recipe; several are merged from left to right
  --task NAME           {tasks}; not needed with a recipe
  --data PATH           a folder of class folders, a CSV list or a MedMNIST .npz file;
                        for segmentation, folders images and masks, a CSV list, or a folder of
                         NIfTI volumes, ISIC or Synapse;
                         for change, folders of both dates and labels;
                         for registration, a folder of cases or a CSV list of pairs
  --masks NAME          name of the folders of masks, or of labels of change; those of the dates:
                        --data.before NAME --data.after NAME
  --model NAME          timm model name (vimamba list-models); for segmentation a backbone,
                        or a network: vm_unet, swin_umamba, umamba_enc_2d ...; for change a
                        backbone, or mamba_bcd_tiny, mamba_scd_tiny, mamba_bda_tiny ...
  --pretrained          start from the published weights
  --epochs N            30 by default; --trainer.max_steps N instead ends after N steps
  --img-size N|HxW      size of the network's input images: side, or height and width: 224, 96x160
  --patch-size N|DxHxW  for volumes: slices, rows and columns of a patch: 32x96x96
  --lr X --batch-size N --seed N --workers N
  --precision P         32-true, bf16-mixed, 16-mixed; 64-true, bf16-true, 16-true
  --out RUN             folder to write; runs/<time>_<model> by default
  --resume auto|RUN     continue from RUN/checkpoints/last.ckpt; auto: from that of --out, if any.
                        With more --epochs, the learning rate follows the longer schedule
  --limit N             use N images of each split
  --patience N          stop after N validations in a row without a better score, the one that
                        also chooses the best epoch
  --lr-find             search for a learning rate first and train with it: RUN/lr_find.png
  --logger NAME...      csv, tensorboard, wandb, mlflow; by default TensorBoard if it is installed;
                        RUN/metrics.csv is always written
  --dry-run             one batch of training and validation, nothing written

Every other setting has a typed name, in recipes and as an option: --model.optim.weight_decay 0.1,
--model.objective.mixup 0.2, --data.augmentation.hflip 0, --trainer.devices 2. See them all with
`--print_config` and your other options; `--model.help vimamba.tasks.Classification` and
`--data.help vimamba.data.ImageFolder` explain them, --help-all those of the trainer.

Callbacks of Lightning, such as --trainer.callbacks+=EarlyStopping with
--trainer.callbacks.monitor=val/loss, can monitor these metrics:
train/loss, val/loss; for classification val/accuracy, val/balanced_accuracy, val/macro_f1,
val/auroc, val/ece, with more than five classes val/top5, with several labels val/exact_match; for
segmentation val/dice, val/miou, val/accuracy; for change val/f1, val/iou, val/kappa, for semantic
change val/sek, val/fscd, for damage val/score, val/f1_building, val/f1_damage; for registration
val/dice, val/ncc, val/folded.
"""

ALIASES = {
    "-c": "--config",
    "--data": "--data.root",
    "--model": "--model.model",
    "--epochs": "--trainer.max_epochs",
    "--lr": "--model.optim.lr",
    "--batch-size": "--data.batch_size",
    "--img-size": "--data.img_size",
    "--patch-size": "--data.img_size",
    "--seed": "--seed_everything",
    "--precision": "--trainer.precision",
    "--workers": "--data.workers",
    "--limit": "--data.limit",
    "--masks": "--data.masks",
    "--lr-find": "--lr_find",
    "--help-all": "--help",
}
TYPED_TO_SHORT = {typed: short for short, typed in ALIASES.items() if short != "-c"}
FLAGS = {
    "--pretrained": "--model.pretrained=true",
    "--dry-run": "--trainer.fast_dev_run=true",
    "--lr-find": "--lr_find=true",
}


def fit_help() -> str:
    """The text of `vimamba fit --help`, including the tasks of imported plug-ins."""
    folders = files("vimamba").joinpath("tasks").iterdir()
    names = sorted(path.name for path in folders if path.joinpath("task.py").is_file())
    if registry := sys.modules.get("vimamba.tasks.registry"):
        names = registry.list_tasks()
    listed = [f"{name} (default)" if name == "classification" else name for name in names]
    return FIT_HELP.replace("{tasks}", ", ".join(listed))


def find_data(task: str | None, path: Path) -> str:
    """Detect the kind of data set at a path for a task, as a class name.

    Args:
        task: Class path; None for classification.
        path: Argument of `--data`.
    """
    from vimamba.tasks import Classification

    cls: Any = find_class(task) if task else Classification
    return cls.find_data(path)


def find_class(path: str) -> type:
    """The class with a dotted name.

    Raises:
        UsageError: No class has this name.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UsageError(f"class_path {path}: there is no such class") from None


def find_recipe(name: str) -> str:
    """A recipe's file: as given, or one of those shipped with the package."""
    package = Path(str(files("vimamba")))
    # in an installed package; in a checkout they are next to it
    for folder in (Path(), package / "configs", package.parent / "configs"):
        for path in (
            folder / name,
            folder / f"{name}.yaml",
            folder / name.removeprefix("configs/"),
        ):
            if path.is_file():
                return str(path)
    raise UsageError(f"--config {name}: there is no such recipe")


def rename(args: list[str]) -> list[str]:
    """Replace each short option by its typed equivalent."""
    renamed = []
    for arg in args:
        name, equals, value = arg.partition("=")
        renamed.append(FLAGS.get(arg) or ALIASES.get(name, name) + equals + value)
    return renamed


def translate(args: list[str]) -> list[str]:
    """Expand short options; put task and data set first if no recipe names them."""
    translated = rename(join_names(split_task(args), "--logger"))
    for place, arg in enumerate(translated):
        if arg.startswith("--config="):
            translated[place] = f"--config={find_recipe(arg.removeprefix('--config='))}"
        elif arg == "--config" and place + 1 < len(translated):
            translated[place + 1] = find_recipe(translated[place + 1])
    options = [arg.partition("=")[0] for arg in translated]
    first = []
    if "--config" not in options and "--data.class_path" not in options:
        path = last_value(translated, "--data.root")
        if path:
            task = last_value(translated, "--model.class_path")
            first = [f"--data.class_path={find_data(task, Path(path))}"]
    return first + translated


def last_value(options: list[str], name: str) -> str | None:
    """The last value given for an option, as `name value` or `name=value`."""
    found = None
    for option, following in zip(options, [*options[1:], None], strict=False):
        if option == name:
            found = following
        elif option.startswith(f"{name}="):
            found = option.partition("=")[2]
    return found


def join_names(args: list[str], option: str) -> list[str]:
    """`--option a b` as `--option=["a", "b"]`, which is how jsonargparse takes a list."""
    joined: list[str] = []
    left = list(args)
    while left:
        arg = left.pop(0)
        if arg != option:
            joined.append(arg)
            continue
        names: list[str] = []
        while left and not left[0].startswith("-"):
            names.append(left.pop(0))
        # as it is where nothing or a list follows
        is_list = len(names) == 1 and names[0].startswith(("[", "null"))
        joined += [arg, *names] if is_list or not names else [f"{arg}={json.dumps(names)}"]
    return joined


def split_task(args: list[str]) -> list[str]:
    """Replace `--task NAME` by its class, in front of all other options."""
    name = last_value(args, "--task")
    if name is None:
        return args
    rest: list[str] = []
    skip = False
    for arg in args:
        if not skip and not arg.startswith("--task=") and arg != "--task":
            rest.append(arg)
        skip = arg == "--task"
    # imported here because it imports Lightning, which help does not need
    from vimamba.tasks.registry import class_path, find_task

    return [f"--model.class_path={class_path(find_task(name))}", *rest]
