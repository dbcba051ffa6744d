"""Augmentation of two dates and their labels: joint geometry, separate colors for each date."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.augmentation import import_albumentations
from vimamba.data.loading import stream_seed
from vimamba.data.masked.augmentation import (
    MaskedAugmentation,
    SeededMaskTransform,
    looking,
    placing,
)
from vimamba.data.preprocessing import Fit
from vimamba.data.resizing import as_fractions
from vimamba.sizes import ImageSize


class PairTransform:
    """Random cut, turns and flips of both dates together, then value changes of each date.

    Args:
        augmentation: What to change and how much.
        size: Side of the output, or height and width, pixels.
        in_chans: Channels of either date.
        fit: Resize whole images ("squash") or cut windows out of them ("window").
        scale_to: Resize the shorter side to this before a window is cut.
        interpolation: A key of `vimamba.data.resizing.INTERPOLATIONS`.
    """

    def __init__(
        self,
        augmentation: MaskedAugmentation,
        size: ImageSize,
        in_chans: int,
        *,
        fit: Fit,
        scale_to: int | None,
        interpolation: str,
    ) -> None:
        cut, steps = placing(
            augmentation, size, fit=fit, scale_to=scale_to, interpolation=interpolation
        )
        self.geometry = SeededMaskTransform(cut, steps)
        self.photometry: Any = import_albumentations().Compose(looking(augmentation, in_chans))
        self.in_chans = in_chans

    def __call__(
        self, dates: Sequence[NDArray], truth: NDArray[np.uint8], seed: int
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.uint8]]:
        """Two dates (H, W, C), uint8 or in [0, 1], and maps (M, H, W), augmented together."""
        stacked = np.concatenate([as_fractions(date) for date in dates], axis=2)
        pixels, maps = self.geometry(stacked, np.moveaxis(truth, 0, -1), seed)
        changed = []
        for place, date in enumerate(np.split(pixels, 2, axis=2)):
            self.photometry.set_random_seed(stream_seed(seed, place))
            found = self.photometry(image=np.ascontiguousarray(date))["image"]
            changed.append(found.reshape(*found.shape[:2], -1))
        maps = maps.reshape(*maps.shape[:2], -1)
        return changed, np.ascontiguousarray(np.moveaxis(maps, -1, 0))
