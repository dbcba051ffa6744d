"""Pictures of pairs: both images, checkerboards of them before and after, the field as a grid.

Sizes: n axes, *grid the axes of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vimamba.tasks.pictures import RED, STYLE, save, shorten

# squares along the longer side of a checkerboard; lines of a deformed grid
SQUARES, LINES = 8, 24
# for each plane of a volume, the axis that is cut and those of rows and columns, among left,
# posterior, superior
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}


@dataclass(frozen=True)
class Look:
    """The images of a pair to draw.

    Attributes:
        name: Name of the pair.
        moving: (*grid) in [0, 1].
        fixed: The same.
        moved: The moving image after the registration.
        flow: (n, *grid), cells.
        spacing: Cell spacing, n.
    """

    name: str
    moving: NDArray
    fixed: NDArray
    moved: NDArray
    flow: NDArray
    spacing: Sequence[float]


def checkerboard(one: NDArray, other: NDArray, squares: int = SQUARES) -> NDArray:
    """Alternating squares of two pictures (H, W): aligned edges are continuous."""
    side = max(1, -(-max(one.shape) // squares))
    rows, columns = (np.arange(size) // side for size in one.shape)
    return np.where((rows[:, None] + columns) % 2 == 0, one, other)


def cut(values: NDArray, plane: str | None) -> NDArray:
    """The middle slice (H, W) of (*grid), the patient's top up; an image is returned as is."""
    if plane is None:
        return values
    axis, rows, columns = PLANES[plane]
    middle = np.take(values, values.shape[axis] // 2, axis=axis)
    # the remaining axes are in their own order
    middle = middle.T if rows > columns else middle
    return middle if plane == "axial" else middle[::-1]


def cut_flow(flow: NDArray, plane: str | None) -> tuple[NDArray, NDArray]:
    """Displacements along rows and columns of the slice from `cut`."""
    if plane is None:
        return flow[0], flow[1]
    _, rows, columns = PLANES[plane]
    down = cut(flow[rows], plane)
    return (down if plane == "axial" else -down), cut(flow[columns], plane)


def draw_grid(axes: Any, flow: tuple[NDArray, NDArray]) -> None:
    """Draw a regular grid deformed by a field (rows, columns)."""
    height, width = flow[0].shape
    rows, columns = np.mgrid[:height, :width]
    y, x = rows + flow[0], columns + flow[1]
    step = max(1, max(height, width) // LINES)
    for line in range(0, height, step):
        axes.plot(x[line], y[line], color="#333333", lw=0.6)
    for line in range(0, width, step):
        axes.plot(x[:, line], y[:, line], color="#333333", lw=0.6)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def draw_pairs(looks: Sequence[Look], path: Path, *, planes: Sequence[str]) -> None:
    """A row for each plane of each pair.

    Args:
        looks: The pairs.
        path: PNG to write.
        planes: Planes of volumes to show.
    """
    rows = [
        (look, plane) for look in looks for plane in (planes if look.fixed.ndim == 3 else (None,))
    ]
    heads = ("moving", "fixed", "moved", "before: moving, fixed", "after: moved, fixed", "field")
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.9 * len(heads), 2.0 * len(rows) + 0.3), layout="constrained")
        for (look, plane), row in zip(
            rows, figure.subplots(len(rows), len(heads), squeeze=False), strict=True
        ):
            moving, fixed, moved = (
                cut(values, plane) for values in (look.moving, look.fixed, look.moved)
            )
            aspect = aspect_of(look.spacing, plane)
            boards = [checkerboard(side, fixed) for side in (moving, moved)]
            for axes, values in zip(row, (moving, fixed, moved, *boards), strict=False):
                axes.imshow(values, cmap="gray", vmin=0, vmax=1, aspect=aspect)
            draw_grid(row[-1], cut_flow(look.flow, plane))
            row[-1].set_aspect(aspect)
            lines = [*look.name.split(" -> "), *([plane] if plane else [])]
            row[0].set_ylabel("\n".join(shorten(line, 26) for line in lines), fontsize=7)
        for axes in figure.axes:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, head in zip(figure.axes, heads, strict=False):
            axes.set_title(head, fontsize=8)
        save(figure, path)


def aspect_of(spacing: Sequence[float], plane: str | None) -> float:
    """Distance of rows over that of columns."""
    _, rows, columns = (0, 0, 1) if plane is None else PLANES[plane]
    return float(spacing[rows]) / float(spacing[columns])


def draw_scores(rows: Sequence[dict[str, Any]], names: Sequence[str], path: Path) -> None:
    """Dice of each class, or image similarity, of every pair before (x) and after (y)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 4), layout="constrained")
        axes = figure.subplots()
        drawn = [(f"dice_before {name}", f"dice {name}", name) for name in names]
        for before, after, name in drawn or [("ncc_before", "ncc", "")]:
            known = [r for r in rows if r[before] is not None and r[after] is not None]
            axes.plot([r[before] for r in known], [r[after] for r in known], "o", label=name)
        axes.axline((0, 0), slope=1, color=RED, lw=1, ls="--")
        what = "Dice" if names else "NCC"
        axes.set_xlabel(f"{what} before")
        axes.set_ylabel(f"{what} after")
        axes.set_title("Each pair: above the line is better", loc="left", fontweight="bold")
        if 1 < len(names) <= 12:
            axes.legend(fontsize=7)
        save(figure, path)
