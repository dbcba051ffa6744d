"""Images on their way into a segmentation network, large ones window by window."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vimamba.cli.mask_jobs import Job
from vimamba.data.masked import FilePair, MaskedImage
from vimamba.data.preprocessing import Preprocessing
from vimamba.tasks.windows import Scene

# an image of more windows' areas is prepared window by window
LARGE = 16


class Part:
    """A part of an image whose stored values are in memory; the limits are the whole image's."""

    def __init__(self, whole: "OpenImage", stored: NDArray) -> None:
        self.whole, self.stored = whole, stored

    def image(self) -> NDArray:
        """(h, w, C) as stored."""
        return self.stored

    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.stored.shape[:2]
        return height, width

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray]:
        """Percentiles of the whole image."""
        return self.whole.limits(percentiles)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["whole"].item, name)


@dataclass
class OpenImage:
    """An image in memory as it is stored.

    Attributes:
        item: The image.
        prepare: From stored values to the network's.
    """

    item: MaskedImage
    prepare: Preprocessing

    def __post_init__(self) -> None:
        self.stored = self.item.image()
        self._limits: dict[tuple[float, float], tuple[NDArray, NDArray]] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.stored.shape[:2]
        return height, width

    @property
    def is_large(self) -> bool:
        """Whether it is prepared window by window, its values staying as small as they are stored.

        That takes a preparation in which a pixel does not depend on the others.
        """
        prepare = self.prepare
        local = prepare.fit == "window" and prepare.scale_to is None
        local &= not prepare.intensity.zscore
        return local and self.stored.shape[0] * self.stored.shape[1] > LARGE * prepare.img_size**2

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray]:
        """Percentiles of the values, computed once."""
        if percentiles not in self._limits:
            self._limits[percentiles] = self.item.limits(percentiles)
        return self._limits[percentiles]

    def pixels(self, step: int = 1) -> NDArray[np.float32]:
        """(H, W, C) in [0, 1], of every `step`-th row and column."""
        part = Part(self, self.stored[::step, ::step])
        return self.prepare.pixels(cast(MaskedImage, part))

    @cached_property
    def network_input(self) -> Tensor | Scene:
        """(C, h, w), or a scene if the image is large."""
        if not self.is_large:
            return self.prepare.tensor(self.prepare.resize(self.pixels()))
        return Scene(self.size, self._cut)

    def _cut(self, rows: slice, columns: slice) -> Tensor:
        """(1, C, h, w) of a window."""
        part = Part(self, self.stored[rows, columns])
        return self.prepare.tensor(self.prepare.pixels(cast(MaskedImage, part)))[None]


class JobImages:
    """The images of jobs by their place; None for a volume, which is read slice by slice.

    Args:
        jobs: The images.
        prepare: From stored values to the network's.
    """

    def __init__(self, jobs: list[Job], prepare: Preprocessing) -> None:
        self.jobs, self.prepare = jobs, prepare

    def __len__(self) -> int:
        """Number of jobs."""
        return len(self.jobs)

    def __getitem__(self, key: int | tuple[int, int]) -> OpenImage | None:
        """One image, ready for the network."""
        assert isinstance(key, int)
        if self.jobs[key].is_volume:
            return None
        opened = self.open(key)
        # here, so that worker processes prepare it
        _ = opened.network_input
        return opened

    def open(self, place: int) -> OpenImage:
        """One image as it is stored."""
        path = self.jobs[place].paths[0]
        return OpenImage(FilePair(path, None, path.parent), self.prepare)
