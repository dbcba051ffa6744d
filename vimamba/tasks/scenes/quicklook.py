"""A picture of a scene and its map, with a legend and a scale bar.

Sizes: H x W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rasterio.warp import transform

from vimamba.data.rasters import gdal_errors
from vimamba.files import write_whole
from vimamba.tasks.overlays import (
    card_info,
    draw_card,
    find_view,
    legend_entries,
    load_font,
    panel,
)
from vimamba.tasks.scenes.maps import Legend
from vimamba.tasks.scenes.polygons import local_meters

# minimum pixels of a panel's longer side, as in overlays of images
LEAST = 512


def draw_quicklook(
    dates: Sequence[NDArray], map_file: Path, legend: Legend, path: Path, *, step: int
) -> None:
    """Write a PNG: the scene at each date, the map over the last, a legend, a scale bar.

    Args:
        dates: A subsample of each date, (H, W, 3) in [0, 1] with NaN.
        map_file: The map.
        legend: Its classes.
        path: The PNG.
        step: Every `step`-th line and column is shown.
    """
    with gdal_errors(map_file), rasterio.open(map_file) as file:
        values = np.concatenate([_line(file, top, step) for top in range(0, file.height, step)])
        meters = pixel_meters(file)
    table = np.full(256, 255, dtype=np.uint8)
    table[list(legend.values)] = np.arange(len(legend.values))
    view = find_view([date.astype(np.float32) for date in dates])
    longest = max(LEAST, *values.shape)
    look: dict[str, Any] = {
        "colors": legend.colors, "background": legend.background, "longest": longest
    }  # fmt: skip
    names = ["scene"] if len(dates) == 1 else [f"date {i + 1}" for i in range(len(dates))]
    panels = [
        (name, panel(view(date), None, **look)) for name, date in zip(names, dates, strict=True)
    ]
    shown = panel(view(dates[-1]), table[values], **look)
    if meters is not None:
        shown = with_scale_bar(shown, meters * step * values.shape[1] / shown.shape[1])
    panels.append(("map", shown))
    note = f"every {step}th line and column" if step > 1 else "every pixel"
    entries = legend_entries(legend.names, legend.colors, legend.background)
    card = draw_card(panels, entries, note, len(panels) - 1)
    with write_whole(path) as part:
        card.save(part, format="PNG", pnginfo=card_info(card))


def _line(file: Any, line: int, step: int) -> NDArray[np.uint8]:
    """Every `step`-th pixel of a line of the map, (1, w)."""
    return file.read(1, window=((line, line + 1), (0, file.width)))[:, ::step]


def pixel_meters(file: Any) -> float | None:
    """Width of a pixel in the middle of a raster; None without a CRS."""
    if not file.crs:
        return None
    affine = np.reshape(file.transform, (3, 3))
    one = affine @ (file.width / 2, file.height / 2, 1)
    other = affine @ (file.width / 2 + 1, file.height / 2, 1)
    around = local_meters(file.crs, (one[0], one[1]))
    x, y, *_ = transform(file.crs, around, [one[0], other[0]], [one[1], other[1]])
    return float(np.hypot(x[1] - x[0], y[1] - y[0]))


def round_length(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not longer."""
    power = 10 ** np.floor(np.log10(most))
    return float(max(factor * power for factor in (1, 2, 5) if factor * power <= most))


def with_scale_bar(image: NDArray[np.uint8], meters: float) -> NDArray[np.uint8]:
    """Draw a labeled scale bar in the lower left corner of (H, W, 3).

    Args:
        image: The picture.
        meters: Width of one of its pixels on the ground.
    """
    height, width = image.shape[:2]
    length = round_length(width * meters / 3)
    bar = round(length / meters)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    font = load_font(13)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    wide = max(bar, round(font.getlength(text)))
    draw.rectangle((6, height - 34, 18 + wide, height - 6), fill="white")
    draw.text((12, height - 32), text, fill="black", font=font)
    draw.rectangle((12, height - 14, 12 + bar, height - 10), fill="black")
    return np.asarray(picture)
