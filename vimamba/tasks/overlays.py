"""Class overlays on images with a legend: functions on arrays, and cards of panels.

Sizes: H x W pixels, C channels.
"""

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from vimamba.data.preprocessing import Intensity, Preprocessing
from vimamba.labels import IGNORE

Color = tuple[int, int, int]
# Okabe and Ito's colors, which color-blind readers can distinguish
DISTINCT: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
OPACITY = 0.6
# the legend
MOST_NAMES = 12
IGNORED = "ignored"
LIGHT, DARK = (235, 235, 235), (70, 70, 70)
# z-scores shown as black and white
ZSCORES = (-2.5, 2.5)
# luma weights of BT.601
LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
# pixels of a card's panels along their longer side, and of each stripe over ignored pixels
PANEL, STRIPE = 512, 5


@cache
def class_colors(count: int, background: bool) -> tuple[Color, ...]:
    """A color for each class; black for a background.

    Args:
        count: Classes.
        background: The first class is background.
    """
    wanted = count - int(background)
    colors = list(DISTINCT[:wanted])
    for index in range(len(colors), wanted):
        # steps of the golden ratio keep neighbors apart
        hue, light = index * 0.61803 % 1, 0.45 + 0.2 * (index % 3)
        red, green, blue = colorsys.hls_to_rgb(hue, light, 0.75)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return ((0, 0, 0), *colors) if background else tuple(colors)


@dataclass(frozen=True)
class View:
    """How the network's pixels become a picture, the same way for all images of a figure or folder.

    Attributes:
        bands: Indices of the channels shown as red, green and blue.
        channels: Number of channels.
        low: Value in [0, 1] that becomes black.
        high: Value that becomes white.
    """

    bands: tuple[int, int, int]
    channels: int
    low: float = 0.0
    high: float = 1.0

    def __call__(self, pixels: NDArray) -> NDArray[np.uint8]:
        """(H, W, C) to (H, W, 3)."""
        shown = (pixels[:, :, list(self.bands)] - self.low) / (self.high - self.low)
        return np.rint(np.nan_to_num(shown).clip(0, 1) * 255).astype(np.uint8)

    def text(self, intensity: Intensity | None = None, bands: Sequence[int] | None = None) -> str:
        """Description of what is shown.

        Args:
            intensity: How stored values became those in [0, 1].
            bands: Indices of the channels in the file, if they were chosen.
        """
        places = [(bands[i] if bands else i) + 1 for i in self.bands]
        parts = []
        if self.channels > 3 or bands:
            parts.append("bands {}, {}, {} as red, green, blue".format(*places))
        elif self.channels == 2:
            parts.append(f"channel {places[0]} of 2")
        window = intensity.window if intensity else None
        found = (intensity.ranges if intensity else None) or []
        ranges = {tuple(found[i]) for i in self.bands} if found else set()
        if len(ranges) == 1:
            (window,) = ranges
        ends = (self.low, self.high)
        if window is not None:
            low, high = (window[0] + end * (window[1] - window[0]) for end in ends)
            parts.append(f"black is {low:.4g}, white {high:.4g} everywhere")
        elif intensity and intensity.percentiles:
            low, high = intensity.percentiles
            parts.append(f"0 and 1 of the range are the percentiles {low:g} and {high:g} of a case")
            parts.append(f"black is {ends[0]:.2g}, white {ends[1]:.2g} of it")
        else:
            low, high = (f"{100 * end:.3g} %" for end in ends)
            whose = "its band's range" if ranges else "the range of values"
            parts.append(f"black is {low}, white {high} of {whose} everywhere")
        return "; ".join(parts)

    def network_text(self, prepare: Preprocessing) -> str:
        """Description of what is shown of images from `as_pixels`."""
        if not prepare.intensity.zscore:
            return self.text(prepare.intensity, prepare.bands)
        low, high = (ZSCORES[0] + end * (ZSCORES[1] - ZSCORES[0]) for end in (self.low, self.high))
        return f"black is {low:.2g}, white {high:.2g} standard deviations from an image's own mean"


def as_pixels(image: Tensor, prepare: Preprocessing) -> NDArray:
    """Undo the normalization: (C, H, W) to (H, W, C) in [0, 1]; z-scores get a fixed range."""
    pixels = image.permute(1, 2, 0).float().numpy()
    if prepare.intensity.zscore:
        return (pixels - ZSCORES[0]) / (ZSCORES[1] - ZSCORES[0])
    return pixels * np.asarray(prepare.std) + np.asarray(prepare.mean)


def find_view(samples: Iterable[NDArray]) -> View:
    """One view for a set of images.

    Black and white are 0 and 1 of the network's range, unless all images are dark, like many
    satellite bands: then the joint range of the images.

    Args:
        samples: Some of the images, (H, W, C) in [0, 1] each.
    """
    some = list(samples)
    channels = some[0].shape[2] if some else 3
    bands = (0, 1, 2) if channels >= 3 else (0, 0, 0)
    if not some:
        return View(bands, channels)
    # some pixels of a large image
    chosen = [pixels[:, :, list(bands)].reshape(-1) for pixels in some]
    pool = np.concatenate([values[:: max(1, values.size // 100_000)] for values in chosen])
    low, high = np.nanpercentile(pool, (0.5, 99.5))
    if high < 0.5 and high > low:
        return View(bands, channels, float(f"{low:.2g}"), float(f"{high:.2g}"))
    return View(bands, channels)


def square_size(shape: Sequence[int], aspect: float, longest: int) -> tuple[int, int]:
    """Rows and columns with square pixels, the longer side about as long as requested.

    Args:
        shape: Begins with rows and columns.
        aspect: Distance of rows over that of columns.
        longest: Pixels of the longer side.
    """
    height, width = shape[:2]
    tall = height * aspect
    factor = longest / max(tall, width)
    if factor > 1 and aspect == 1:  # whole factors keep pixels equally large
        factor = int(factor)
    return max(1, round(tall * factor)), max(1, round(width * factor))


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) at another size: averaged when shrinking, nearest neighbor when growing."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))


def resize_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) at another size by nearest neighbor."""
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def stripes(height: int, width: int) -> NDArray[np.bool_]:
    """Diagonal stripes."""
    return (np.add.outer(np.arange(height), np.arange(width)) // STRIPE) % 2 == 0


def overlay(
    image: NDArray[np.uint8], mask: NDArray, colors: Sequence[Color], background: bool
) -> NDArray[np.uint8]:
    """Draw the classes' colors over an image; the background stays uncolored.

    Under a class the image is gray, so that the color matches the legend everywhere. Outlines have
    the full color and a dark edge. Ignored pixels are striped.

    Args:
        image: (H, W, 3).
        mask: (H, W) classes.
        colors: One per class.
        background: The first class is background.
    """
    table = np.full((256, 3), 128, dtype=np.uint8)
    table[: len(colors)] = colors
    covered = mask != IGNORE
    if background:
        covered &= mask != 0
    result = image.copy()
    edge = grow(outlines(mask))
    gray = (image[covered] @ LUMA)[:, None] * 0.7 + 50
    weight = np.where(edge[covered], 1, OPACITY)[:, None]
    result[covered] = np.rint(gray + weight * (table[mask[covered]] - gray)).astype(np.uint8)
    # outside the outline of a class, where there is nothing else
    result[edge & ~covered] = (0, 0, 0)
    ignored = mask == IGNORE
    if ignored.any():
        pattern = np.where(stripes(*mask.shape)[..., None], LIGHT, DARK)
        result[ignored] = pattern[ignored]
    return result


def outlines(mask: NDArray) -> NDArray[np.bool_]:
    """Pixels whose neighbor on the right or below, or left or above, is of another class."""
    edge = np.zeros(mask.shape, dtype=bool)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def grow(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Marked pixels and their neighbors in rows and columns."""
    grown = marked.copy()
    grown[1:] |= marked[:-1]
    grown[:-1] |= marked[1:]
    grown[:, 1:] |= marked[:, :-1]
    grown[:, :-1] |= marked[:, 1:]
    return grown


def legend_entries(
    names: Sequence[str], colors: Sequence[Color], background: bool
) -> list[tuple[str, Color | None]]:
    """Names and colors of a legend; None for classes without a color in the picture.

    Args:
        names: Names of the classes; if there are too many, the rest is cut off.
        colors: One per class.
        background: The first class is a background, which stays uncolored.
    """
    entries: list[tuple[str, Color | None]] = list(zip(names, colors, strict=True))
    if background:
        entries[0] = (f"{names[0]} (no color)", None)
    if len(entries) > MOST_NAMES:
        entries = [*entries[:MOST_NAMES], (f"and {len(entries) - MOST_NAMES} more", None)]
    return entries


def panel(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8] | None,
    colors: Sequence[Color],
    background: bool,
    *,
    aspect: float = 1.0,
    longest: int = PANEL,
) -> NDArray[np.uint8]:
    """An image, with classes over it if given, at its display size."""
    size = square_size(image.shape, aspect, longest)
    resized = resize_image(image, size)
    if mask is None:
        return resized
    return overlay(resized, resize_mask(mask, size), colors, background)


@cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's font, which is available on every system."""
    file = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)


def draw_card(
    panels: Sequence[tuple[str, NDArray[np.uint8]]],
    legend: Sequence[tuple[str, Color | None]],
    note: str,
    best: int = 0,
) -> Image.Image:
    """Panels side by side with a line above each, and the legend and a note below.

    Args:
        panels: Title and (H, W, 3) of each.
        legend: See `legend_entries`.
        note: Description of what is shown.
        best: The panel that represents the card on a contact sheet; see `thumbnail`.
    """
    gap, line, font = 12, 22, load_font(13)
    wide = [max(pixels.shape[1], 120) for _, pixels in panels]
    width = max(sum(wide) + gap * (len(panels) + 1), 420)
    tall = max(pixels.shape[0] for _, pixels in panels)
    rows: list[list[tuple[int, str, Color | None]]] = [[]]
    x = gap
    for name, color in legend:
        text = cut(name, 40)
        needed = 34 + round(font.getlength(text))
        if rows[-1] and x + needed > width:
            rows.append([])
            x = gap
        rows[-1].append((x, text, color))
        x += needed
    notes = wrap(note, width - 2 * gap, font)
    top = gap + line
    height = top + tall + gap + line * (len(rows) + len(notes)) + gap // 2
    card = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(card)
    x, boxes = gap, []
    for (caption, pixels), room in zip(panels, wide, strict=True):
        draw.text((x, gap), cut(caption, room // 8), fill="#222222", font=font)
        card.paste(Image.fromarray(pixels), (x, top))
        boxes.append((x, top, pixels.shape[1], pixels.shape[0]))
        x += room + gap
    y = top + tall + gap
    for row in rows:
        for x, text, color in row:
            if color is not None:
                draw.rectangle((x, y + 2, x + 14, y + 16), fill=color, outline="#555555")
            draw.text((x + 20, y + 1), text, fill="#222222", font=font)
        y += line
    for text in notes:
        draw.text((gap, y + 1), text, fill="#666666", font=font)
        y += line
    card.info["panel"] = " ".join(map(str, boxes[best]))
    return card


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break text into lines of at most `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def cut(text: str, most: int) -> str:
    """Shorten text, marking the cut; unprintable characters are removed."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def card_info(card: Image.Image) -> PngInfo:
    """Metadata of a card's file."""
    info = PngInfo()
    info.add_text("panel", card.info["panel"])
    return info


def thumbnail(path: Path) -> NDArray[np.uint8]:
    """The panel that represents a card, (H, W, 3)."""
    with Image.open(path) as card:
        x, y, width, height = map(int, str(card.info["panel"]).split())
        return np.asarray(card.convert("RGB").crop((x, y, x + width, y + height)))


def choose_slices(labels: NDArray, background: bool, count: int = 4) -> list[int]:
    """Slices to show, spread over those with foreground, including the one with most.

    Args:
        labels: (slices, H, W) classes.
        background: The first class is background.
        count: Slices to choose.

    Returns:
        In order; the middle one if all are empty.
    """
    if not background:
        return sorted(set(np.linspace(0, len(labels) - 1, count + 2)[1:-1].round().astype(int)))
    full = (labels != 0).sum((1, 2))
    holding = np.flatnonzero(full)
    if len(holding) == 0:
        return [len(labels) // 2]
    if len(holding) <= count:
        return holding.tolist()
    at = np.linspace(0, len(holding) - 1, count + 2)[1:-1].round().astype(int)
    chosen = holding[at].tolist()
    fullest = int(full.argmax())
    if fullest not in chosen:  # instead of the nearest one
        chosen[int(np.abs(np.asarray(chosen) - fullest).argmin())] = fullest
    return sorted(chosen)
