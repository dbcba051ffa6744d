"""Images as input of a segmentation network, large ones window by window."""

import math
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.items import FileImage, StoredImage
from vimamba.data.pixels import percentile_limits
from vimamba.data.preprocessing import Preprocessing
from vimamba.sizes import height_and_width
from vimamba.tasks.segmentation.jobs import Job
from vimamba.tasks.windows import Scene

# an image larger than this many windows is prepared window by window
LARGE = 16
# step of the rows and columns that are prepared at once to check the image
SAMPLED = 64


class Part:
    """A part of an image whose stored values are in memory, with the limits of the whole image.

    Args:
        whole: The image.
        rows: The part's rows.
        columns: The part's columns.
    """

    def __init__(self, whole: "OpenImage", rows: slice, columns: slice) -> None:
        self.whole, self.rows, self.columns = whole, rows, columns

    def image(self, *args: Any) -> NDArray:
        """(h, w, C) as stored."""
        return self.whole.read(*args)[self.rows, self.columns]

    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.whole.read()[self.rows, self.columns].shape[:2]
        return height, width

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray]:
        """Percentiles of the whole image."""
        return self.whole.limits(percentiles)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["whole"].item, name)


class OpenImage:
    """An image held in memory as stored.

    Args:
        item: The image.
        prepare: From stored values to the network's.

    Raises:
        DataError: It cannot be read or used; the message names it.
    """

    def __init__(self, item: StoredImage, prepare: Preprocessing) -> None:
        self.item, self.prepare = item, prepare
        self._stored: NDArray | None = None
        self._limits: dict[tuple[float, float], tuple[NDArray, NDArray]] = {}
        self.pixels(SAMPLED)

    def read(self, *args: Any) -> NDArray:
        """(H, W, C) as stored, read once."""
        if self._stored is None:
            self._stored = self.item.image(*args)
        return self._stored

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.read().shape[:2]
        return height, width

    @property
    def is_large(self) -> bool:
        """Whether it is prepared window by window, so that it stays in memory as stored.

        This requires preprocessing in which a pixel does not depend on the others.
        """
        prepare, (height, width) = self.prepare, self.size
        local = prepare.fit == "window" and prepare.scale_to is None
        local &= not prepare.intensity.zscore
        return local and height * width > LARGE * math.prod(height_and_width(prepare.img_size))

    def limits(self, percentiles: tuple[float, float]) -> tuple[NDArray, NDArray]:
        """Percentiles of the values of each channel, computed once."""
        if percentiles not in self._limits:
            self._limits[percentiles] = percentile_limits(self.read(), percentiles)
        return self._limits[percentiles]

    def pixels(self, step: int = 1) -> NDArray[np.float32]:
        """(H, W, C) in [0, 1], of every `step`-th row and column."""
        every = slice(None, None, step)
        return self.prepare.pixels(cast(StoredImage, Part(self, every, every)))

    @cached_property
    def network_input(self) -> Tensor | Scene:
        """(C, h, w), or a scene if the image is large."""
        if self.is_large:
            return Scene(self.size, lambda rows, columns: self._prepared(rows, columns)[None])
        return self._prepared(slice(None), slice(None))

    def _prepared(self, rows: slice, columns: slice) -> Tensor:
        """(C, h, w) of a part."""
        return self.prepare.image(cast(StoredImage, Part(self, rows, columns)))


class JobImages:
    """The images of jobs by index; None for a volume, which is read slice by slice.

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
        if not opened.is_large:  # here, so that it runs in the worker process
            _ = opened.network_input
        return opened

    def open(self, place: int) -> OpenImage:
        """One image as stored."""
        path = self.jobs[place].paths[0]
        return OpenImage(FileImage(path, path.parent), self.prepare)
