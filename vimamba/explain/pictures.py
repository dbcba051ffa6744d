"""Pictures of explanations: maps over the image, a receptive field, paths.

Sizes: H and W image, h and w map, K paths of T steps.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vimamba.explain.erf import ReceptiveField
from vimamba.files import write_whole
from vimamba.visualize import TIME_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
# inches
_PANEL, _TITLE = 2.1, 0.28
_COLUMNS = 5
# maximum number of steps that are numbered
_MOST_NUMBERS = 64


def as_picture(image: Tensor) -> NDArray[np.float32]:
    """A preprocessed image (C, H, W) as (H, W, 3), rescaled to [0, 1]."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    pixels = shown.detach().float().cpu().movedim(0, -1).numpy()
    low, high = float(pixels.min()), float(pixels.max())
    return ((pixels - low) / max(high - low, 1e-12)).astype(np.float32)


def draw_maps(
    image: Tensor,
    maps: Mapping[str, NDArray[Any]],
    path: Path,
    *,
    smooth: bool = False,
    points: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw the image, and next to it every map over a gray version.

    Args:
        image: (C, H, W), preprocessed.
        maps: (h, w) by title; those with negative values in red and blue, the others bright where
            high.
        path: PNG to write.
        smooth: Interpolate the maps; if False, their cells are visible.
        points: (y, x), marked in all of them.
    """
    picture = as_picture(image)
    height, width = picture.shape[:2]
    figure, panels = _new_figure(1 + len(maps), height / width)
    panels[0].imshow(picture)
    panels[0].set_title("image", fontsize=8)
    gray = np.repeat(picture.mean(-1, keepdims=True), 3, axis=2)
    for axes, (title, values) in zip(panels[1:], maps.items(), strict=True):
        axes.imshow(gray)
        limit = float(np.nanmax(np.abs(values))) or 1.0
        is_signed = bool(np.nanmin(values) < 0)
        axes.imshow(
            values,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            cmap="seismic" if is_signed else "inferno",
            vmin=-limit if is_signed else float(np.nanmin(values)),
            vmax=limit,
            alpha=0.7,
            interpolation="bilinear" if smooth else "nearest",
        )
        axes.set_title(title, fontsize=8)
    for axes in panels:
        for y, x in points:
            axes.plot(x, y, "+", color="#00e0a0", markersize=9, markeredgewidth=1.8)
    _save(figure, path)


def draw_field(field: ReceptiveField, path: Path) -> None:
    """Draw a receptive field on a log scale, with the disks of its fractions."""
    from matplotlib.patches import Circle

    height, width = field.map.shape
    figure, (axes,) = _new_figure(1, height / width, scale=1.6)
    strongest = float(field.map.max())
    shown = np.log10(np.maximum(field.map / strongest, 1e-4))
    axes.imshow(shown, cmap="inferno", vmin=-4, vmax=0)
    for share, radius in field.radii.items():
        center = (field.center[1] - 0.5, field.center[0] - 0.5)
        axes.add_patch(Circle(center, radius, fill=False, color="#00e0a0", linewidth=1.2))
        place = (center[0], max(center[1] - radius, 1.0))
        label = f"{100 * share:.0f} %"
        axes.annotate(label, place, color="#00e0a0", fontsize=8, ha="center", va="bottom")
    radii = ", ".join(f"{100 * share:.0f} % in {r:.0f} px" for share, r in field.radii.items())
    axes.set_title(radii, fontsize=8)
    _save(figure, path)


def draw_walks(image: Tensor, places: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Draw paths over the image, colored from first to last step; short paths are numbered.

    Args:
        image: (C, H, W), preprocessed.
        places: (T, 2) of one path by title, as from `paths`.
        path: PNG to write.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("time", TIME_COLORS)
    picture = 0.35 * as_picture(image).mean(-1, keepdims=True).repeat(3, axis=2) + 0.6
    figure, panels = _new_figure(len(places), picture.shape[0] / picture.shape[1])
    for axes, (title, steps) in zip(panels, places.items(), strict=True):
        axes.imshow(picture)
        points = steps[:, ::-1] - 0.5
        lines = np.stack([points[:-1], points[1:]], axis=1)
        whole = np.isfinite(lines).all((1, 2))
        walk = LineCollection(list(lines[whole]), cmap=colors, linewidths=1.3)
        walk.set_array(np.arange(len(lines))[whole])
        walk.set_clim(0, max(len(steps) - 1, 1))
        axes.add_collection(walk)
        on_grid = np.flatnonzero(np.isfinite(points).all(1))
        for step, marker in ((on_grid[-1:], "s"), (on_grid[:1], "o")):
            for place in points[step]:
                shade = colors(0.0 if marker == "o" else 1.0)
                axes.plot(*place, marker, color=shade, markersize=6, markeredgecolor="white")
        if len(on_grid) <= _MOST_NUMBERS:
            for step in on_grid:
                axes.annotate(str(step), points[step], fontsize=5, ha="left", va="bottom")
        axes.set_title(title, fontsize=8)
    _save(figure, path)


def _new_figure(panels: int, aspect: float, scale: float = 1.0) -> tuple["Figure", list["Axes"]]:
    """A figure with panels of one aspect (height / width); without pyplot, so no window."""
    from matplotlib.figure import Figure

    columns = min(panels, _COLUMNS)
    rows = math.ceil(panels / columns)
    side = _PANEL * scale
    size = (columns * (side + 0.1), rows * (min(side * aspect, 3 * side) + _TITLE + 0.05))
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    places: list[Axes] = list(grid.ravel())
    for axes in places:
        axes.set_axis_off()
    return figure, places[:panels]


def _save(figure: "Figure", path: Path) -> None:
    with write_whole(path) as part:
        figure.savefig(part, format="png")
