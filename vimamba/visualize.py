"""Pictures of scan orders: each path as a line over the grid, colored by time.

A filled circle marks the first step, a square the last. Bold lines connect steps of the usual
stride, thin lines are jumps; padding with zero tokens interrupts a line. The slices of a volume are
drawn below each other in perspective.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vimamba.files import write_whole
from vimamba.scan_orders import list_scan_orders, scan_paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# early to late; all dark enough to be seen on the light grid
TIME_COLORS = ("#1f2a6b", "#5b2a9d", "#b0308f", "#ea5a5b", "#f79c2d")
_INK, _FAINT_INK, _CELL = "#23263b", "#71758c", "#eef0f5"
_DPI = 160


@dataclass(frozen=True)
class _View:
    """Layout of a grid's cells in a picture, in units of a cell; y points down.

    Attributes:
        slices, height, width: Sizes of the grid; one slice if it is an image.
        slant: Shift of a row to the right of the one below it; 0 for an image.
        flat: Height of a cell.
    """

    slices: int
    height: int
    width: int
    slant: float = 0.0
    flat: float = 1.0

    @property
    def pitch(self) -> float:
        """Distance between slices."""
        return self.flat * self.height + 0.6

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the whole grid."""
        width = self.width + self.slant * self.height
        return width, self.pitch * (self.slices - 1) + self.flat * self.height

    def place(self, z: float, y: float, x: float) -> tuple[float, float]:
        """Position of a point of a slice, whose cell (0, 0) extends from 0 to 1."""
        return x + self.slant * (self.height - y), self.pitch * z + self.flat * y

    def center(self, cell: int) -> tuple[float, float]:
        """Position of a cell's center, by its raster index."""
        z, y, x = self.split(cell)
        return self.place(z, y + 0.5, x + 0.5)

    def split(self, cell: Any) -> tuple[Any, Any, Any]:
        """Slice, row and column of a cell or of a tensor of them."""
        return (
            cell // (self.height * self.width),
            cell // self.width % self.height,
            cell % self.width,
        )


def _look_at(grid: Sequence[int]) -> _View:
    if len(grid) == 3:
        return _View(*grid, slant=0.45, flat=0.5)
    return _View(1, *(1, *grid)[-2:])


def draw_scan_order(order: str, grid: Sequence[int], path: str | Path) -> Path:
    """Draw all K paths of a scan order side by side.

    Args:
        order: Name of a scan order, with or without parameters, or a sum: "local(window=4)".
        grid: Its cells: (height, width), (depth, height, width) or (length,).
        path: The picture; PNG, or another format of matplotlib by its suffix. Missing folders are
            made; the file appears complete or not at all.

    Returns:
        `path`.

    Raises:
        ValueError: The order, the size or the format is not accepted.
        ImportError: matplotlib is not installed.
    """
    paths = scan_paths(order, *grid)
    if len(grid) > 3:
        raise ValueError(f"grid={tuple(grid)} has {len(grid)} axes; up to 3 can be drawn")
    view = _look_at(grid)
    wide, high = view.extent
    columns = _count_columns(len(paths), high, wide)
    rows = math.ceil(len(paths) / columns)
    # inches; panels are wide enough for their titles
    longest = 2.4 if max(grid) <= 20 else 3.4
    longest *= 1.5 if view.slices > 1 else 1.0
    cell = longest / max(high, wide)
    panel_width, panel_height = max(cell * wide, 1.7), max(cell * high, 0.5)
    gap, title, header, footer = 0.3, 0.3, 0.55, 0.5
    figure_width = max(columns * (panel_width + gap) + gap, 4.0)
    figure_height = header + rows * (panel_height + title + 0.15) + footer
    figure = _new_figure(figure_width, figure_height)
    count = f"{len(paths)} path" + ("s" if len(paths) > 1 else "")
    _write(figure, figure_width / 2, figure_height - 0.32, order, 13, bold=True, center=True)
    left = (figure_width - columns * panel_width - (columns - 1) * gap) / 2
    for index, steps in enumerate(paths):
        row, column = divmod(index, columns)
        x = left + column * (panel_width + gap)
        y = figure_height - header - (row + 1) * (panel_height + title + 0.15) + 0.15
        axes = _add_panel(figure, x, y, panel_width, panel_height)
        _draw_path(axes, steps, view, cell)
        padding = int((steps < 0).sum())
        label = f"path {index} · {len(steps)} step" + ("s" if len(steps) > 1 else "")
        label += f", {padding} padded" if padding else ""
        _write(figure, x + panel_width / 2, y + panel_height + 0.1, label, 8.5, center=True)
    _write(figure, gap, 0.2, f"{' x '.join(map(str, grid))} · {count}", 8.5)
    _draw_legend(figure, figure_width - gap, 0.2)
    return _save(figure, Path(path))


def draw_gallery(path: str | Path, *, size: int = 8) -> Path:
    """Draw all scan orders of images in one picture, without reversed copies of paths.

    Args:
        path: The picture, see `draw_scan_order`.
        size: Rows and columns of the grid.

    Returns:
        `path`.
    """
    # the default window of 7 would be mostly padding on a small grid
    small = {"local": "local(window=4)", "windows": "windows(size=4)"}
    orders = [small.get(name, name) for name in list_scan_orders(dims=2)]
    tables = {order: scan_paths(order, size, size) for order in orders}
    shown = {order: _drop_reverses(paths) for order, paths in tables.items()}
    panel, gap, title = 1.25, 0.16, 0.42
    pitch, margin, room = panel + gap, 0.3, 8
    rows = _pack(shown, room)
    figure_width = room * pitch - gap + 2 * margin
    figure_height = 0.95 + len(rows) * (panel + title) + 0.2
    figure = _new_figure(figure_width, figure_height)
    _write(figure, margin, figure_height - 0.42, f"{len(orders)} scan orders", 15, bold=True)
    note = "K paths per order; reversed copies are not drawn"
    _write(figure, margin, figure_height - 0.68, note, 9)
    _draw_legend(figure, figure_width - margin, figure_height - 0.42)
    for row, names in enumerate(rows):
        x, y = margin, figure_height - 0.95 - (row + 1) * (panel + title) + 0.1
        for order in names:
            _write(figure, x, y + panel + 0.19, order, 8, bold=True)
            _write(figure, x, y + panel + 0.06, f"K = {len(tables[order])}", 6.5)
            for steps in shown[order]:
                axes = _add_panel(figure, x, y, panel, panel)
                _draw_path(axes, steps, _look_at((size, size)), panel / size)
                x += pitch
    return _save(figure, Path(path))


def _count_columns(panels: int, height: float, width: float) -> int:
    """Panels per row: long grids are stacked, others are side by side."""
    if width > 3 * height:
        return 1 if panels <= 4 else 2
    if panels <= 4 or height > 3 * width:
        return min(panels, 8)
    return 4 if panels in (8, 12) else math.ceil(math.sqrt(panels))


def _drop_reverses(paths: Tensor) -> list[Tensor]:
    """The paths, without those that equal an earlier one or its reverse."""
    kept: list[Tensor] = []
    for path in paths:
        if not any(path.equal(other) or path.equal(other.flip(0)) for other in kept):
            kept.append(path)
    return kept


def _pack(shown: dict[str, list[Tensor]], room: int) -> list[list[str]]:
    """Orders in rows of at most `room` panels, each in the first row that has room for it."""
    rows: list[list[str]] = []
    for order, paths in shown.items():
        for row in rows:
            if sum(len(shown[name]) for name in row) + len(paths) <= room:
                row.append(order)
                break
        else:
            rows.append([order])
    return rows


def _new_figure(width: float, height: float) -> "Figure":
    """An empty white figure, sizes in inches; no pyplot, hence no window and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = 'pictures need matplotlib; install it with: pip install "vimamba[train]"'
        raise ImportError(message) from error
    return Figure(figsize=(width, height), dpi=_DPI, facecolor="white")


def _add_panel(figure: "Figure", x: float, y: float, width: float, height: float) -> "Axes":
    """Axes at a position in inches from the lower left corner."""
    all_width, all_height = figure.get_size_inches()
    box = (x / all_width, y / all_height, width / all_width, height / all_height)
    axes = figure.add_axes(box)
    axes.set_axis_off()
    return axes


def _write(
    figure: "Figure",
    x: float,
    y: float,
    text: str,
    size: float,
    *,
    bold: bool = False,
    center: bool = False,
) -> None:
    """Write text with its baseline at a position in inches from the lower left corner."""
    width, height = figure.get_size_inches()
    figure.text(
        x / width,
        y / height,
        text,
        fontsize=size,
        fontweight="bold" if bold else "normal",
        color=_INK if bold else _FAINT_INK,
        horizontalalignment="center" if center else "left",
    )


def _draw_path(axes: "Axes", path: Tensor, view: _View, cell: float) -> None:
    """Draw one path over its grid.

    Args:
        axes: Where to draw.
        path: (T,), -1 where padded.
        view: Layout of the grid.
        cell: Side of a grid cell in inches.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("time", TIME_COLORS)
    points = 72 * cell
    wide, high = view.extent
    axes.set(xlim=(0, wide), ylim=(high, 0), aspect="equal")
    _draw_cells(axes, view, points)
    real = path >= 0
    places = torch.stack(view.split(path))
    stride = places.diff(dim=1).abs().amax(0)
    known = stride[real[1:] & real[:-1]]
    # a random order has no usual stride
    usual = int(known.mode().values) if known.numel() else 1
    usual = usual if (known <= usual).float().mean() > 0.5 else 1
    corners, times, widths, opacities = [], [], [], []
    for step in range(len(path) - 1):
        if not (real[step] and real[step + 1]):
            continue
        jump = stride[step] > usual
        corners.append([view.center(int(path[at])) for at in (step, step + 1)])
        times.append((step + 0.5) / (len(path) - 1))
        widths.append(min(0.07 * points, 0.6) if jump else min(0.22 * points, 2.6))
        opacities.append(0.55 if jump else 1.0)
    lines = LineCollection(corners, linewidths=widths, alpha=opacities or None, capstyle="round")
    lines.set(array=times, cmap=colors, clim=(0, 1))
    axes.add_collection(lines)
    visited = path[real]
    if len(visited):
        side = min(max(0.55 * points * view.flat, 3.0), 9.0)
        for at, marker, color in ((-1, "s", colors(1.0)), (0, "o", colors(0.0))):
            size = side * 0.75 if marker == "o" and len(visited) == 1 else side
            axes.plot(
                *view.center(int(visited[at])),
                marker=marker,
                markersize=size,
                markerfacecolor=color,
                markeredgecolor="white",
                markeredgewidth=0.12 * side,
                zorder=3,
                clip_on=False,
            )


def _draw_cells(axes: "Axes", view: _View, points: float) -> None:
    """Draw the grid: light cells with white gaps of `points` width."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Polygon

    height, width = view.height, view.width
    borders = []
    for z in range(view.slices):
        sheet = [view.place(z, y, x) for y, x in ((0, 0), (0, width), (height, width), (height, 0))]
        axes.add_patch(Polygon(sheet, closed=True, facecolor=_CELL, zorder=0))
        borders += [(view.place(z, 0, x), view.place(z, height, x)) for x in range(1, width)]
        borders += [(view.place(z, y, 0), view.place(z, y, width)) for y in range(1, height)]
    gap = min(0.08 * points, 1.2)
    axes.add_collection(LineCollection(borders, colors="white", linewidths=gap, zorder=1))


def _draw_legend(figure: "Figure", right: float, y: float) -> None:
    """Draw first step, color scale of time, last step; on baseline y, up to `right`, in inches."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("time", TIME_COLORS)
    axes = _add_panel(figure, right - 1.87, y - 0.06, 1.87, 0.24)
    axes.set(xlim=(0, 1.87), ylim=(-0.12, 0.12))
    bar = [[step / 255 for step in range(256)]]
    axes.imshow(bar, cmap=colors, extent=(0.55, 1.45, -0.03, 0.03), aspect="auto")
    axes.set(xlim=(0, 1.87), ylim=(-0.12, 0.12))
    axes.plot(0.5, 0, "o", color=colors(0.0), markersize=6)
    axes.plot(1.5, 0, "s", color=colors(1.0), markersize=6)
    text = {"color": _FAINT_INK, "fontsize": 8.5, "verticalalignment": "center_baseline"}
    axes.text(0.4, 0, "start", horizontalalignment="right", **text)
    axes.text(1.6, 0, "end", horizontalalignment="left", **text)


def _save(figure: "Figure", path: Path) -> Path:
    """Write the picture, completely or not at all."""
    with write_whole(path) as part:
        figure.savefig(part, format=path.suffix.lstrip(".") or "png", facecolor="white")
    return path
