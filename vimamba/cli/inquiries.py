"""`vimamba list-models`, `identify` and `visualize`: commands that need torch and timm only."""

import json
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimamba.console import show_table
from vimamba.errors import UsageError


def make_parser(name: str, description: str) -> ArgumentParser:
    """A parser that shows its description as it is written."""
    return ArgumentParser(
        prog=f"vimamba {name}",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def check_at_least(given: Namespace, **least: int) -> None:
    """Fail on a number that is too small; one that was not given is None.

    Raises:
        UsageError: Names the option.
    """
    for name, lowest in least.items():
        value = getattr(given, name)
        values = value if isinstance(value, list) else [value]
        for number in values:
            if number is not None and number < lowest:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {number} must be at least {lowest}")


def settle_options(
    given: Namespace, kind: str, options: Mapping[str, Mapping[str, Any]], what: str = "{}"
) -> None:
    """Give the options of the chosen kind their defaults; refuse those that only others take.

    Args:
        given: Parsed; an option that was not given is None.
        kind: What was chosen.
        options: What each kind takes, with the defaults.
        what: How the error names kinds, such as "{} runs".

    Raises:
        UsageError: Names the option.
    """
    for name in dict.fromkeys(name for own in options.values() for name in own):
        if name not in options[kind]:
            if getattr(given, name) is not None:
                kinds = " and ".join(other for other, own in options.items() if name in own)
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is for {what.format(kinds)}, not for {kind}")
        elif getattr(given, name) is None:
            setattr(given, name, options[kind][name])


def list_models(args: list[str]) -> int:
    """Print the models; returns the exit code."""
    parser = make_parser(
        "list-models",
        "Lists models with parameters, input size, published ImageNet-1k top-1 accuracy and the\n"
        "licence of the weights.\n\n"
        "  vimamba list-models\n  vimamba list-models 'vmamba_tiny*' --pretrained --json",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="name with * and ?")
    parser.add_argument("--pretrained", action="store_true", help="only those with weights")
    parser.add_argument("--all", action="store_true", help="also the models timm ships")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    given = parser.parse_args(args)
    pattern = given.pattern if re.search(r"[*?\[]", given.pattern) else f"*{given.pattern}*"
    rows = [model_row(name) for name in find_models(pattern, given.all, given.pretrained)]
    if given.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        raise UsageError(f"no model fits {given.pattern!r}; --all looks at timm's own models, too")
    shown = [
        [
            row["name"],
            f"{row['params'] / 1e6:.1f}",
            "x".join(str(size) for size in row["input_size"]),
            "-" if row["top1"] is None else f"{row['top1']:.1f}",
            row["license"] or "-",
        ]
        for row in rows
    ]
    head = ["model", "params (M)", "input", "top-1 (%)", "weights' licence"]
    show_table(f"{len(rows)} models", head, shown)
    return 0


def find_models(pattern: str, everything: bool, pretrained: bool) -> list[str]:
    """Names that fit a pattern: ours and the user's own, or all that timm knows."""
    import timm
    from timm.models import model_entrypoint

    import vimamba  # noqa: F401  registers the models
    from vimamba.plugins import is_plugin

    names = timm.list_models(pattern)
    if not everything:
        modules = {name: model_entrypoint(name).__module__ for name in names}
        names = [n for n in names if modules[n].startswith("vimamba.") or is_plugin(modules[n])]
        names = [n for n in names if not n.startswith("test_") or pattern.startswith("test")]
    if pretrained:
        names = [name for name in names if timm.models.is_model_pretrained(name)]
    return names


def model_row(name: str) -> dict[str, Any]:
    """What the list says about one model; no memory is spent on its weights."""
    import timm

    from vimamba.checkpoints import cfg_note
    from vimamba.hub import create_skeleton

    net = create_skeleton(name)
    cfg: Any = net.pretrained_cfg
    top1 = cfg_note(cfg, "top-1", "")
    return {
        "name": name,
        "params": sum(parameter.numel() for parameter in net.parameters()),
        "input_size": list(cfg["input_size"]),
        "top1": float(top1) if top1.replace(".", "").isdecimal() else None,
        "license": cfg.get("license"),
        "pretrained": timm.models.is_model_pretrained(name),
    }


def identify(args: list[str]) -> int:
    """Print what a checkpoint file is; returns the exit code."""
    parser = make_parser(
        "identify",
        "Says which model an official checkpoint file belongs to.\n\n  vimamba identify FILE.pth",
    )
    parser.add_argument("file", type=Path)
    given = parser.parse_args(args)
    if not given.file.is_file():
        raise UsageError(f"{given.file} is not a file")

    import vimamba.checkpoints

    found = vimamba.checkpoints.identify(given.file)
    rows = [
        ["family", found.family],
        ["variant", found.variant],
        ["generation", found.generation],
        ["channels of the images", found.in_chans],
        ["classes", found.num_classes or "none: a backbone"],
        ["accuracy", found.accuracy],
        ["licence", found.license],
        ["load it with", found.create_line.replace("FILE", repr(str(given.file)))],
    ]
    show_table(str(given.file), ["checkpoint", ""], rows)
    return 0


def visualize(args: list[str]) -> int:
    """Draw a scan order; returns the exit code."""
    parser = make_parser(
        "visualize",
        "Draws every path of a scan order over its grid.\n\n"
        "  vimamba visualize scan --order hilbert --size 14x14 -o hilbert.png\n"
        "  vimamba visualize scan --order 'local(window=7)' -o local.png\n"
        "  vimamba visualize scan --order 'raster + interslice' --size 4x6x6 -o volume.png",
    )
    parser.add_argument("what", choices=("scan",))
    parser.add_argument("--order", required=True, help="name of a scan order")
    parser.add_argument(
        "--size", default="14x14", help="HEIGHTxWIDTH or DEPTHxHEIGHTxWIDTH in cells"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="PNG to write")
    given = parser.parse_args(args)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", given.size):
        raise UsageError(
            f"--size {given.size} must be HEIGHTxWIDTH, such as 14x14, or DEPTHxHEIGHTxWIDTH"
        )
    grid = [int(side) for side in given.size.split("x")]
    from vimamba import visualize as drawing

    try:
        drawing.draw_scan_order(given.order, grid, given.out)
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(f"written to {given.out}")
    return 0
