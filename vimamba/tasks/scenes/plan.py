"""Plan for processing a scene: its windows, in stripes that fit into a given memory.

Sizes: H x W pixels of the scene, h x w of a window, K scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vimamba.data.rasters import Raster, Strips
from vimamba.errors import UsageError
from vimamba.tasks.windows import place_windows

# lines written at a time, and rows and columns of a map's blocks
BLOCK = 256


@dataclass(frozen=True)
class Stripe:
    """Some columns of a scene, from its top to its bottom.

    Attributes:
        columns: The columns of its output.
        windows: First columns of the windows that overlap them.
        span: The columns covered by these windows.
    """

    columns: slice
    windows: tuple[int, ...]
    span: slice


@dataclass(frozen=True)
class Plan:
    """The windows of a scene.

    Attributes:
        size: H and W.
        window: h and w.
        rows: First lines of the windows.
        stripes: From left to right; one if the memory suffices.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    rows: tuple[int, ...]
    stripes: tuple[Stripe, ...]

    def rows_from(self, line: int) -> list[int]:
        """The rows of windows needed for the lines from `line` on."""
        return [row for row in self.rows if row + self.window[0] > line]

    @property
    def num_windows(self) -> int:
        """Total number; windows shared by stripes count for each."""
        return len(self.rows) * sum(len(stripe.windows) for stripe in self.stripes)


def make_plan(
    rasters: Sequence[Raster],
    window: tuple[int, int],
    overlap: float,
    *,
    num_scores: int,
    out_bytes: int,
    memory: float,
) -> Plan:
    """Place the windows, in as few stripes as the memory allows.

    Args:
        rasters: The scene's dates, on one grid.
        window: h and w.
        overlap: Overlap of neighboring windows, a fraction in [0, 1).
        num_scores: K.
        out_bytes: Bytes written per pixel.
        memory: Bytes for scores and strips, in addition to the network.

    Raises:
        UsageError: Not even the narrowest stripe fits; the message says what would.
    """
    height, width = rasters[0].size
    columns = place_windows(width, window[1], overlap)
    per_column = 4 * (num_scores + 2) * window[0] + window[0] + 2 * BLOCK * out_bytes
    for raster in rasters:
        lines = Strips.most(raster, window[0]) * raster.strip_height
        per_column += raster.line_bytes * min(lines, height)
    blocks = -(-width // BLOCK)
    widest = width
    for step in sorted({-(-blocks // parts) for parts in range(1, blocks + 1)}, reverse=True):
        ends = [*range(0, width, step * BLOCK), width]
        stripes = [lay_stripe(slice(*pair), columns, window[1], width) for pair in pairwise(ends)]
        widest = max(stripe.span.stop - stripe.span.start for stripe in stripes)
        if per_column * widest <= memory:
            rows = place_windows(height, window[0], overlap)
            return Plan((height, width), window, tuple(rows), tuple(stripes))
    tall = max(raster.strip_height for raster in rasters)
    other = "smaller windows"
    if tall > 4 * max(window[0], BLOCK):
        other = (
            f"a file in tiles (blocks of this one have {tall} lines): rio convert --co tiled=yes"
        )
    raise UsageError(
        f"a memory of {memory / 1e9:.3g} GB is too little for {rasters[0].path} in windows of "
        f"{window[0]} x {window[1]} pixels; {per_column * widest / 1e9:.2g} GB would do, or {other}"
    )


def lay_stripe(columns: slice, windows: Sequence[int], side: int, width: int) -> Stripe:
    """The stripe for some columns of a scene of this width."""
    own = tuple(w for w in windows if w + side > columns.start and w < columns.stop)
    return Stripe(columns, own, slice(own[0], min(own[-1] + side, width)))
