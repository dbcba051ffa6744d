"""Draw the README's first picture: python tools/overview.py [file].

An image becomes tokens, paths of a scan order visit them, one selective scan reads along the paths,
and the results are summed at the tokens' positions.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from vimamba.files import write_whole
from vimamba.scan_orders import scan_paths

DEFAULT_FILE = Path(__file__).parents[1] / "docs" / "images" / "overview.png"
INK, FAINT = "#23263b", "#71758c"
TIME = LinearSegmentedColormap.from_list(
    "time", ("#1f2a6b", "#5b2a9d", "#b0308f", "#ea5a5b", "#f79c2d")
)
SIZE = 8


def landscape(pixels: int) -> np.ndarray:
    """A sun over hills, (pixels, pixels, 3) in [0, 1]."""
    y, x = np.mgrid[0 : 1 : pixels * 1j, 0 : 1 : pixels * 1j]
    sky = np.stack([0.98 - 0.30 * (1 - y), 0.75 - 0.25 * (1 - y), 0.55 + 0.30 * (1 - y)], axis=-1)
    sun = np.exp(-(((x - 0.68) ** 2 + (y - 0.34) ** 2) / 0.012))[..., None]
    picture = sky * (1 - sun) + np.array([1.0, 0.93, 0.70]) * sun
    far = y > 0.62 + 0.07 * np.sin(7 * x + 1.0)
    near = y > 0.78 + 0.06 * np.sin(5 * x + 3.4)
    picture[far] = (0.42, 0.36, 0.55)
    picture[near] = (0.22, 0.24, 0.40)
    return picture


def panel(figure: Figure, x: float, y: float, side: float) -> Axes:
    """A square of `side` inches for a grid of tokens."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((x / width, y / height, side / width, side / height))
    axes.set(xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5), aspect="equal")
    axes.set_axis_off()
    return axes


def show(axes: Axes, picture: np.ndarray, alpha: float = 1.0) -> None:
    """A picture cut into tokens."""
    axes.imshow(picture, extent=(-0.5, SIZE - 0.5, SIZE - 0.5, -0.5), alpha=alpha)
    for line in range(SIZE + 1):
        axes.axhline(line - 0.5, color="white", linewidth=1.6)
        axes.axvline(line - 0.5, color="white", linewidth=1.6)


def follow(axes: Axes, path: np.ndarray) -> None:
    """A path as a line colored by time."""
    places = np.stack([path % SIZE, path // SIZE], axis=-1)
    lines = LineCollection(
        list(np.stack([places[:-1], places[1:]], axis=1)), linewidths=2.2, capstyle="round"
    )
    lines.set(array=np.linspace(0, 1, len(path) - 1), cmap=TIME)
    axes.add_collection(lines)
    for end, marker, color in ((0, "o", TIME(0.0)), (-1, "s", TIME(1.0))):
        axes.plot(*places[end], marker, color=color, markersize=5, markeredgecolor="white")


def draw(file: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(11.9, 3.5), dpi=150)
    width, height = figure.get_size_inches()

    def write(x: float, y: float, text: str, **style: object) -> None:
        style = {"ha": "center", "color": FAINT, "fontsize": 10, **style}
        figure.text(x / width, y / height, text, **style)  # type: ignore[arg-type]

    def arrow(x: float) -> None:
        ends = ((x / width, 1.85 / height), ((x + 0.42) / width, 1.85 / height))
        style = {"arrowstyle": "-|>", "mutation_scale": 14, "color": FAINT, "linewidth": 1.6}
        figure.add_artist(FancyArrowPatch(*ends, transform=figure.transFigure, **style))

    picture = landscape(240)
    show(panel(figure, 0.35, 0.75, 2.2), picture)
    arrow(2.66)
    for k, path in enumerate(scan_paths("hilbert", SIZE, SIZE).numpy()):
        axes = panel(figure, 3.2 + 1.14 * (k % 2), 1.89 - 1.14 * (k // 2), 1.06)
        show(axes, picture, alpha=0.28)
        follow(axes, path)
    arrow(5.5)
    box = ((6.06 / width, 0.75 / height), 2.6 / width, 2.2 / height)
    frame = {"boxstyle": "round,pad=0,rounding_size=0.012", "facecolor": "#eef0f5", "linewidth": 0}
    figure.add_artist(FancyBboxPatch(*box, transform=figure.transFigure, **frame))
    formula = {"color": INK, "fontsize": 12.5}
    write(7.36, 2.25, r"$h_t = e^{\Delta_t A}\,h_{t-1} + \Delta_t B_t\,u_t$", **formula)
    write(7.36, 1.75, r"$y_t = C_t\,h_t + D\,u_t$", **formula)
    write(7.36, 1.1, "Triton · numba · PyTorch", fontsize=9)
    arrow(8.78)
    show(panel(figure, 9.34, 0.75, 2.2), response(picture))
    titles = ("tokens", "paths of a scan order", "one selective scan", "summed in place")
    notes = ("any height and width", "by name: hilbert", "on any machine", "features for any head")
    for x, title, note in zip((1.45, 4.3, 7.36, 10.44), titles, notes, strict=True):
        write(x, 3.12, title, color=INK, fontsize=12, fontweight="bold")
        write(x, 0.42, note)
    with write_whole(file) as part:
        figure.savefig(part, facecolor="white")


def response(picture: np.ndarray) -> np.ndarray:
    """An illustration of features: each token's brightness relative to its neighbors, colored."""
    step = len(picture) // SIZE
    tokens = picture.mean(-1).reshape(SIZE, step, SIZE, step).mean((1, 3))
    around = np.pad(tokens, 1, mode="edge")
    contrast = tokens - sum(np.roll(around, s, a)[1:-1, 1:-1] for s in (-1, 1) for a in (0, 1)) / 4
    level = np.clip(0.5 + 2.5 * contrast + 0.5 * (tokens - tokens.mean()), 0, 1)
    return TIME(level)[..., :3]


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE)
