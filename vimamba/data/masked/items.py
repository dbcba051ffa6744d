"""Images with masks, independent of their storage.

Sizes: H x W pixels, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from numpy.typing import NDArray

from vimamba.data.formats import open_image
from vimamba.data.geometry import check_grids, raster_grid, resample
from vimamba.data.items import FileImage, Item, StoredImage, relative_name
from vimamba.data.masked.labels import mask_values
from vimamba.data.pixels import reading


class MaskedImage(StoredImage, Item, Protocol):
    """One image and its mask, read on demand."""

    @property
    def mask_name(self) -> str:
        """Name of the mask."""
        ...

    @property
    def case(self) -> str:
        """Images of one case, such as the slices of a volume, are scored together."""
        ...

    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing of a case along (rows, columns) or (slices, rows, columns).

        In millimeters if known, otherwise in pixels.
        """
        ...

    def mask(self) -> NDArray:
        """(H, W) integers or (H, W, 3) colors, as stored.

        Raises:
            DataError: It cannot be read, or is not on the image's grid.
        """
        ...

    def size(self) -> tuple[int, int]:
        """Height and width of the image, without reading all of it if possible."""
        ...


@dataclass(frozen=True)
class MaskedFile(FileImage):
    """An image file and a mask file of the same size.

    Attributes:
        path: The image.
        root: Folder that names are relative to.
        mask_path: The mask.
        group: As in `Item`.
        align: Resample a GeoTIFF mask on another grid onto its image.
    """

    mask_path: Path = Path()
    group: str = ""
    spacing: tuple[float, ...] = (1.0, 1.0)
    align: bool = False

    @property
    def mask_name(self) -> str:
        """Path of the mask relative to the root."""
        return relative_name(self.mask_path, self.root)

    def target_text(self, class_names: Sequence[str]) -> str:
        """Name of the mask."""
        return self.mask_name

    @property
    def case(self) -> str:
        """Only the image."""
        return self.name

    def mask(self) -> NDArray:
        """(H, W) integers or (H, W, 3) colors, as stored."""
        stored = read_mask(self.mask_path)
        here, there = raster_grid(self.path), raster_grid(self.mask_path)
        if here is None or there is None or here.agrees(there):
            return stored
        check_grids(here, there, self.path, self.mask_path, align=self.align)
        return resample(stored, there, here, nearest=True, outside=0)


def read_mask(path: Path) -> NDArray:
    """Values of a mask file as stored: palette indices, integers, or colors.

    JPEG changes values, so its masks may only have 0 and 255 and are thresholded at half the range.

    Returns:
        (H, W) integers, or (H, W, 3) uint8 if the file is in color.

    Raises:
        DataError: The file is missing or damaged, or the meaning of its pixels is ambiguous; the
            message names it.
    """
    with reading(path, "mask"), open_image(path) as image:
        return mask_values(image.stored(), str(path), blurred=image.blurring)
