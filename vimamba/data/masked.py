"""Images with masks: what one is, whatever it is stored in, and lists of them.

Sizes: H x W pixels, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from numpy.typing import NDArray

from vimamba.data.geometry import check_grids, raster_grid, resample
from vimamba.data.pixels import StoredImage, image_size, read_mask, read_pixels


class MaskedImage(StoredImage, Protocol):
    """One image and its mask, read when asked for."""

    @property
    def mask_name(self) -> str:
        """What to call the mask."""
        ...

    @property
    def case(self) -> str:
        """Images of one case, such as the slices of a volume, are scored together."""
        ...

    @property
    def group(self) -> str:
        """Images of one group, such as a patient, are never in two splits."""
        ...

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbors of a case along (rows, columns) or (slices, rows, columns).

        Pixels where nothing is known, else millimetres.
        """
        ...

    def mask(self) -> NDArray:
        """(H, W) integers or (H, W, 3) colors, as stored.

        Raises:
            DataError: It cannot be read, or does not lie where the image lies.
        """
        ...

    def size(self) -> tuple[int, int]:
        """Height and width of the image, without reading all of it where that is possible."""
        ...


@dataclass(frozen=True)
class FilePair:
    """An image file and a mask file of the same size.

    Attributes:
        path: The image.
        mask_path: The mask; None where there is none yet.
        root: Names are given relative to it.
        group: As in `MaskedImage`; the image alone by default.
        align: A GeoTIFF mask that lies elsewhere than its image is resampled onto it.
    """

    path: Path
    mask_path: Path | None
    root: Path
    group: str = ""
    spacing: tuple[float, ...] = (1.0, 1.0)
    align: bool = False

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.name)

    @property
    def name(self) -> str:
        """Path relative to the root, with forward slashes."""
        return relative_name(self.path, self.root)

    @property
    def mask_name(self) -> str:
        """Path of the mask relative to the root."""
        return relative_name(self.mask_path, self.root) if self.mask_path else ""

    @property
    def case(self) -> str:
        """The image alone."""
        return self.name

    def image(self, wanted: int | None = None) -> NDArray:
        """Pixels; see `vimamba.data.pixels.read_pixels`."""
        return read_pixels(self.path, wanted)

    def mask(self) -> NDArray:
        """(H, W) integers or (H, W, 3) colors, as stored."""
        assert self.mask_path is not None
        stored = read_mask(self.mask_path)
        here, there = raster_grid(self.path), raster_grid(self.mask_path)
        if here is None or there is None or here.agrees(there):
            return stored
        check_grids(here, there, self.path, self.mask_path, align=self.align)
        return resample(stored, there, here, nearest=True, outside=0)

    def size(self) -> tuple[int, int]:
        """Height and width from the file's head."""
        return image_size(self.path)

    def limits(self, percentiles: tuple[float, float]) -> None:
        """The image is a case by itself."""


def relative_name(path: Path, root: Path) -> str:
    """Path relative to the root where it lies below it, with forward slashes."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


@dataclass(frozen=True)
class MaskedSamples:
    """A list of images with masks.

    Attributes:
        items: In order; the images of one case follow each other.
    """

    items: tuple[MaskedImage, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def name(self, index: int) -> str:
        """What to call the image in a table or an error."""
        return self.items[index].name

    def item(self, index: int) -> MaskedImage:
        """One image."""
        return self.items[index]

    def label_text(self, index: int, class_names: Sequence[str]) -> str:
        """What to call the mask."""
        return self.items[index].mask_name

    def join(self, other: "MaskedSamples") -> "MaskedSamples":
        """These images, then the others."""
        return MaskedSamples(self.items + other.items)

    def take(self, indices: Sequence[int] | NDArray) -> "MaskedSamples":
        """The chosen images, in the order given."""
        return MaskedSamples(tuple(self.items[int(i)] for i in indices))

    def groups(self) -> list[str]:
        """Group of each image."""
        return [item.group for item in self.items]


@dataclass(frozen=True)
class MaskedCatalogue:
    """What a data set holds.

    Attributes:
        splits: Images of "train", "val" and "test", as far as they exist.
        drawn: The split was generated here, not shipped with the data set.
    """

    splits: dict[str, MaskedSamples]
    drawn: bool
