"""Images with labels: as files on disk or as one array in memory.

Sizes: N images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vimamba.data.items import ArrayImage, FileImage, Item, StoredImage

# a class index, or (C,) float32 of zeros and ones for multi-label data
Label = int | NDArray


class LabelledImage(StoredImage, Item, Protocol):
    """One image and its label."""

    @property
    def label(self) -> Label:
        """See `Label`."""
        ...


@dataclass(frozen=True, eq=False)
class LabelledFile(FileImage):
    """An image file with a label.

    Attributes:
        label: See `Label`.
        group: As in `Item`.
    """

    label: Label = 0
    group: str = ""

    def target_text(self, class_names: Sequence[str]) -> str:
        """Names of the image's classes."""
        return label_text(self.label, class_names)


@dataclass(frozen=True, eq=False)
class LabelledArray(ArrayImage):
    """An image in memory with a label.

    Attributes:
        label: See `Label`.
        group: As in `Item`.
    """

    label: Label = 0
    group: str = ""

    def target_text(self, class_names: Sequence[str]) -> str:
        """Names of the image's classes."""
        return label_text(self.label, class_names)


def labels_of(items: Sequence[LabelledImage]) -> NDArray:
    """(N,) int64 class indices, or (N, C) float32 of zeros and ones."""
    return np.asarray([item.label for item in items])


def label_text(label: Label | np.integer, class_names: Sequence[str]) -> str:
    """Name of a class index, or the names of a multi-hot row joined by `;`."""
    chosen = [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()
    return ";".join(class_names[index] for index in chosen)
