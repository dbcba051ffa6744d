"""Entry point of the `vimamba` command: help, version and lists of models need no torch.

It is a separate module because importing anything from `vimamba` registers the models with timm.
"""

import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path

HELP = """\
vimamba: train and use vision-Mamba models, and any other timm model

  vimamba fit --data FOLDER --model vim_tiny_patch16_224     train on a folder of class folders
  vimamba fit -c configs/classification/digits_vim.yaml      train by a recipe
  vimamba fit --task segmentation --data FOLDER --model vm_unet    on images and masks
  vimamba cross-validate --data FOLDER ... --out OUT         train and score a network per fold
  vimamba scanbench --orders cross hilbert ... --out OUT     which scan order is best on your data
  vimamba validate | test RUN                                score a run's best checkpoint
  vimamba compare RUN...                                     settings and scores side by side
  vimamba predict RUN IMAGE...|FOLDER|CSV --out preds.csv    classify or segment images
  vimamba list-models [PATTERN]                              models with sizes, accuracy, license
  vimamba identify FILE                                      say what a checkpoint file is
  vimamba convert FILE --out model.safetensors               an official file as timm's
  vimamba visualize scan --order hilbert -o hilbert.png      draw a scan order
  vimamba benchmark ops|models                               time them beside others
  vimamba explain MODEL|RUN IMAGE... --out seen              what a network looks at
  vimamba export MODEL|RUN --to onnx                         a file for other programs, checked
  vimamba doctor MODEL|RUN --precision 16-mixed              where numbers grow too large
  vimamba nnunet check|plan|train|predict                    these networks in nnU-Net

`vimamba COMMAND --help` explains each; `vimamba --version` prints the version. Every command takes
--import MODULE_OR_FILE, any number of times: models, scan orders, networks and tasks of your own.
"""


def help_or_version(args: Sequence[str]) -> str | None:
    """The help text or the version if requested, else None.

    Args:
        args: Arguments after the program's name.
    """
    if not args or args[0] in ("-h", "--help", "help"):
        return HELP
    if args[0] == "--version":
        return f"vimamba {read_version()}\n"
    return None


def read_version() -> str:
    """The version, read from its file without importing it."""
    spec = importlib.util.find_spec("vimamba")
    assert spec is not None
    text = Path(str(spec.origin)).read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
    assert found is not None
    return found[1]


def find_plugins() -> EntryPoints:
    """Modules that installed packages ask every command to import."""
    return entry_points(group="vimamba.plugins")


def lists_stored_models(args: Sequence[str]) -> bool:
    """Whether `list-models` only needs models of this package, whose facts are stored."""
    others = any(arg.startswith(("--all", "--import", "test")) for arg in args)
    return args[:1] == ["list-models"] and not others and not find_plugins()


def leave_models_out() -> None:
    """Allow importing modules of vimamba without its `__init__`, which registers the models."""
    spec = importlib.util.find_spec("vimamba")
    assert spec is not None
    sys.modules["vimamba"] = importlib.util.module_from_spec(spec)


def main() -> int:
    """Run the command; returns the exit code, see `vimamba.cli.main`."""
    args = sys.argv[1:]
    if text := help_or_version(args):
        print(text, end="")
        return 0
    if lists_stored_models(args):
        leave_models_out()
    from vimamba.cli import main as run

    return run()
