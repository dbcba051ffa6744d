"""Console output: tables and lines, plain unless the output is a terminal."""

import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence

# warnings of libraries that do not apply here
QUIET = (
    "LightningCLI's args parameter",
    "The '.*' does not have many workers",
    "The number of training batches",
    "Found .* module\\(s\\) in eval mode",
    "Total length of `list` across ranks is zero",
    "You are trying to `self.log",
    ".*sync_dist=True.*",
    ".*litlogger.*",
    ".*LeafSpec.*",
    ".*treespec.*",
    ".*pin_memory.*",
    ".*always_return_as_numpy.*",
    "Total length of `list` across ranks is zero",
    "SWA is currently only supported every epoch",
    ".*lr_scheduler.step\\(\\).*before.*optimizer.step.*",
)
# their loggers, which repeat them
LOUD = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric", "timm")


def is_terminal() -> bool:
    """Whether standard output is a terminal rather than a file or pipe."""
    return sys.stdout.isatty()


def say(text: str = "") -> None:
    """Print a line, above any progress bar; only in the first of several processes."""
    from tqdm import tqdm

    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    if next((rank for rank in ranks if rank is not None), "0") != "0":
        return
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def command_line(*words: object) -> str:
    """A `vimamba` command ready to type: quoted, and found even if it is not on the PATH."""
    program = "vimamba" if shutil.which("vimamba") else sys.argv[0]
    if not program.endswith("vimamba"):
        program = "vimamba"  # called from Python
    return shlex.join([program, *map(str, words)])


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` decimals, or a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def millions(count: int | None) -> str:
    """A count in millions: two decimals, three digits of less than a million, a dash for None."""
    if count is None:
        return "-"
    return f"{count / 1e6:.2f}" if count >= 1e6 else f"{count / 1e6:.3g}"


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers are right-aligned, text left-aligned.

    Args:
        title: Line above it.
        columns: Heads.
        rows: Cells, shown by `str`.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    right = [
        all(re.fullmatch(r"-|-?[\d.,]+%?", row[i]) for row in cells) for i in range(len(columns))
    ]
    if is_terminal():
        try:
            _show_rich(title, columns, cells, right)
        except ImportError:
            pass
        else:
            return
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    say(title)
    for row in [list(columns), *cells]:
        fitted = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        )
        say(("  " + "  ".join(fitted)).rstrip())


def show_wide_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in as many parts as the screen asks for, each with the first column.

    Args:
        title: Line above the first part.
        columns: Heads.
        rows: Cells, shown by `str`.
    """
    # with the spaces between columns, as rich draws them
    widths = [3 + max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    room = shutil.get_terminal_size().columns - 2 - widths[0]
    parts: list[list[int]] = [[0]]
    for place, width in enumerate(widths[1:], 1):
        if len(parts[-1]) > 1 and sum(widths[i] for i in parts[-1][1:]) + width > room:
            parts.append([0])
        parts[-1].append(place)
    for number, part in enumerate(parts):
        cells = [[row[i] for i in part] for row in rows]
        show_table("" if number else title, [columns[i] for i in part], cells)


def _show_rich(
    title: str, columns: Sequence[str], cells: list[list[str]], right: list[bool]
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if title:
        console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for column, number in zip(columns, right, strict=True):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def hide_hints() -> None:
    """Hide libraries' hints; errors and unknown warnings remain."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
