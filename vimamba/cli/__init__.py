"""The `vimamba` command.

Subcommands that do not train are dispatched before Lightning is imported, so they start fast.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence

from vimamba.errors import VimambaError
from vimamba.files import UNWRITABLE
from vimamba_command import HELP, help_or_version

Command = Callable[[list[str]], int]


def _command(name: str) -> Command | None:
    """Import and return the function of a subcommand."""
    if name == "fit":
        from vimamba.cli.training import fit as command
    elif name == "cross-validate":
        from vimamba.cli.cross_validation import cross_validate as command
    elif name == "compare":
        from vimamba.cli.compare import compare as command
    elif name == "scanbench":
        from vimamba.cli.scanbench import scanbench as command
    elif name in ("validate", "test"):
        from functools import partial

        from vimamba.cli.evaluation import evaluate

        command = partial(evaluate, name)
    elif name == "predict":
        from vimamba.cli.prediction import predict as command
    elif name == "list-models":
        from vimamba.cli.model_list import list_models as command
    elif name == "identify":
        from vimamba.cli.inquiries import identify as command
    elif name == "convert":
        from vimamba.cli.conversion import convert as command
    elif name == "benchmark":
        from vimamba.cli.benchmark import benchmark as command
    elif name == "export":
        from vimamba.cli.export import export as command
    elif name == "doctor":
        from vimamba.cli.doctor import doctor as command
    elif name == "explain":
        from vimamba.cli.explain import explain as command
    elif name == "nnunet":
        from vimamba.cli.nnunet import nnunet as command
    elif name == "visualize":
        from vimamba.cli.inquiries import visualize as command
    else:
        return None
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        0, 2 for a user error, 3 if `predict` failed on some of its inputs, or 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if text := help_or_version(args):
        print(text, end="")
        return 0
    try:
        args, own = split_imports(args)
        command = _command(args[0]) if args else None
        if command is None:
            named = repr(args[0]) if args else "none"
            print(f"error: unknown command {named}\n\n{HELP}", end="", file=sys.stderr)
            return 2
        # the help of `fit` lists their tasks
        if args[0] == "fit" or not {"-h", "--help"} & set(args):
            from vimamba.plugins import load_plugins

            load_plugins(own)
        return command(args[1:])
    except SystemExit as end:  # argparse, after help or a usage error
        if isinstance(end.code, str):  # as Python itself does with a string
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        extra = _extra_of(error)
        if extra is None:
            raise
        text = _last_line(str(error))
        print(f'error: {text}; run `pip install "vimamba[{extra}]"`', file=sys.stderr)
        return 2
    except VimambaError as error:
        print(f"error: {_last_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.strerror is None or (error.filename is None and error.errno not in UNWRITABLE):
            raise
        place = f"{error.filename}: " if error.filename else ""
        unwritable = "cannot be written: " if error.errno in UNWRITABLE else ""
        print(f"error: {place}{unwritable}{error.strerror}", file=sys.stderr)
        return 2


def split_imports(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take every `--import NAME` out of a command line.

    Returns:
        The other arguments, and the names.

    Raises:
        UsageError: A name is missing.
    """
    rest: list[str] = []
    names: list[str] = []
    left = iter(args)
    for arg in left:
        if arg == "--import":
            names.append(next(left, ""))
        elif arg.startswith("--import="):
            names.append(arg.partition("=")[2])
        else:
            rest.append(arg)
    if "" in names or any(name.startswith("--") for name in names):
        from vimamba.errors import UsageError

        raise UsageError("--import needs the name of a module or a file")
    return rest, names


# packages that an extra of pyproject.toml installs, by import name
EXTRAS = {
    "train": (
        "pytorch_lightning",
        "jsonargparse",
        "torchmetrics",
        "albumentations",
        "sklearn",
        "matplotlib",
        "tifffile",
        "imagecodecs",
    ),
    "explain": ("pytorch_grad_cam", "ttach"),
    "bench": ("scikit_posthocs", "statsmodels", "pandas"),
    "cluster": ("ray",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "medical": ("monai", "nibabel", "h5py", "scipy", "pydicom"),
    "geo": ("rasterio",),
    "nnunet": ("nnunetv2",),
}


def _extra_of(error: ImportError) -> str | None:
    """The extra that installs the package whose import failed."""
    # an error from a worker process only has its text
    named = re.search(r"No module named '(\w+)", str(error))
    package = (error.name or (named[1] if named else "")).split(".")[0]
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)


def _last_line(text: str) -> str:
    """The message itself, without the traceback that a worker process puts before it."""
    if "Original Traceback" not in text:
        return text
    lines = re.split(r"^[\w.]+(?:Error|Exception): ", text.strip(), flags=re.MULTILINE)[-1]
    return " ".join(lines.split())
