"""Blends windows while keeping only the lines they cover.

A window's lines are final as soon as the next row of windows starts below them. The sums equal
those of `vimamba.tasks.windows.slide` on a whole image, in the same order.

Sizes: h x w pixels of a window, K scores, W columns.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimamba.tasks.windows import gaussian_weights


class Band:
    """Weighted sums of scores over the lines of one row of windows.

    Args:
        num_scores: K.
        window: h and w.
        size: Lines and columns of the band, at most the window's and W.
        left: The first column.
    """

    def __init__(
        self, num_scores: int, window: tuple[int, int], size: tuple[int, int], left: int
    ) -> None:
        self.top, self.left = 0, left
        self.sums = torch.zeros((num_scores, *size), dtype=torch.float32, device="cpu")
        self.total = torch.zeros(size, dtype=torch.float32, device="cpu")
        self.known = np.zeros(size, dtype=bool)
        # a scene smaller than a window is centered in it
        lines, columns = min(size[0], window[0]), min(size[1], window[1])
        down, across = (window[0] - lines) // 2, (window[1] - columns) // 2
        self.part = (slice(down, down + lines), slice(across, across + columns))
        self.weights = gaussian_weights(window)[self.part]

    @property
    def height(self) -> int:
        """Lines that are kept."""
        return self.sums.shape[1]

    def move(self, top: int) -> None:
        """Drop the lines above `top`."""
        gone = min(top - self.top, self.height)
        self.top = top
        if gone <= 0:
            return
        for plane in (
            *self.sums,
            self.total,
        ):  # one by one, to save memory
            plane[: self.height - gone] = plane[gone:].clone()
            plane[self.height - gone :] = 0
        self.known[: self.height - gone] = self.known[gone:].copy()
        self.known[self.height - gone :] = False

    def add(self, column: int, scores: Tensor) -> None:
        """Add a window of the row.

        Args:
            column: Its first column in the scene.
            scores: (K, h, w).
        """
        lines, width = self.weights.shape
        place = slice(column - self.left, column - self.left + width)
        self.sums[:, :lines, place] += scores[:, self.part[0], self.part[1]] * self.weights
        self.total[:lines, place] += self.weights

    def is_known(self, column: int) -> bool:
        """Whether a window of the row has valid pixels."""
        lines, width = self.weights.shape
        place = slice(column - self.left, column - self.left + width)
        return bool(self.known[:lines, place].any())

    def lines(self, rows: slice, columns: slice) -> tuple[Tensor, NDArray[np.bool_]]:
        """Blended scores (K, n, w) of some lines and columns, and which pixels are valid."""
        down = slice(rows.start - self.top, rows.stop - self.top)
        across = slice(columns.start - self.left, columns.stop - self.left)
        known = self.known[down, across]
        # without valid pixels there may be no window
        total = self.total[down, across].clamp(min=torch.finfo(torch.float32).tiny)
        return self.sums[:, down, across] / total, known
