"""`vimamba identify` and `visualize`, and how commands without Lightning read their options."""

import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimamba.console import show_table
from vimamba.errors import UsageError


def make_parser(name: str, description: str) -> ArgumentParser:
    """A parser that shows its description verbatim."""
    return ArgumentParser(
        prog=f"vimamba {name}",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def check_at_least(given: Namespace, **least: int) -> None:
    """Fail on a number that is too small; None means it was not given.

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


def complete_options(
    given: Namespace, kind: str, options: Mapping[str, Mapping[str, Any]], what: str = "{}"
) -> None:
    """Set the defaults of the chosen kind's options; reject options of other kinds.

    Args:
        given: Parsed arguments; an option that was not given is None.
        kind: The chosen kind.
        options: Options of each kind, with defaults.
        what: How the error names kinds, such as "{} runs".

    Raises:
        UsageError: Names the option.
    """
    for name in dict.fromkeys(name for own in options.values() for name in own):
        if name not in options[kind]:
            if getattr(given, name) is not None:
                *others, last = (other for other, own in options.items() if name in own)
                kinds = f"{', '.join(others)} and {last}" if others else last
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is for {what.format(kinds)}, not for {kind}")
        elif getattr(given, name) is None:
            setattr(given, name, options[kind][name])


def check_destination(out: Path, *, folder: bool) -> None:
    """Fail early if the output cannot be written.

    Raises:
        UsageError: There is a file instead of a folder, or vice versa, or nothing can be written
            there.
    """
    parent = next(place for place in out.absolute().parents if place.exists())
    if out.exists() and out.is_dir() != folder:
        kinds = ("file", "folder") if folder else ("folder", "file")
        raise UsageError(f"--out {out} is a {kinds[0]}; expected the name of a {kinds[1]}")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"--out {out} cannot be written in {parent}")


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
    title, head = str(given.file), ["checkpoint", ""]
    if found.others:
        matching = [found, *found.others]
        lines = [
            [one.variant, one.accuracy or "-", one.notes or "-", one.line(given.file)]
            for one in matching
        ]
        same = f"{title}: names and shapes are those of {len(matching)} models"
        show_table(same, ["it may be", "accuracy", "notes", "load it with"], lines)
        return 0
    rows = [
        ["family", found.family],
        ["variant", found.variant],
        ["channels of the images", found.in_chans],
        ["classes", found.num_classes or "none: a backbone"],
        ["accuracy", found.accuracy],
        ["license", found.license],
        ["notes", found.notes or "-"],
        ["load it with", found.line(given.file)],
    ]
    show_table(title, head, rows)
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
