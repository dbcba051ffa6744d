"""Folders of GeoTIFF scenes and label rasters, cut into tiles that are read by window."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from vimamba.data.base import check_positive
from vimamba.data.items import OneImage, relative_name
from vimamba.data.masked.items import MaskedFile, MaskedImage
from vimamba.data.masked.labels import mask_values
from vimamba.data.masked.mask_folder import MaskFolder
from vimamba.data.preprocessing import Fit
from vimamba.labels import IGNORE
from vimamba.sizes import height_and_width

if TYPE_CHECKING:
    from vimamba.data.rasters import Raster

# ratio of a tile's side to the network's, so that random windows differ
TILE = 2


def open_raster(path: Path, **kwargs: Any) -> "Raster":
    """Import and open `Raster`, which needs rasterio; other data sets work without it."""
    from vimamba.data.rasters import Raster

    return Raster(path, **kwargs)


@dataclass(frozen=True)
class SceneTile(OneImage):
    """A window of a scene with its labels.

    Attributes:
        path: The scene.
        mask_path: Its labels.
        root: Folder that names are relative to.
        corner: The tile's first row and column.
        shape: Its height and width.
        align: Warp labels on another grid onto the scene's, with nearest resampling.
        ignore: Value outside such labels.
    """

    path: Path
    mask_path: Path
    root: Path
    corner: tuple[int, int]
    shape: tuple[int, int]
    align: bool
    ignore: int
    spacing: tuple[float, ...] = (1.0, 1.0)

    @property
    def name(self) -> str:
        """Path relative to the root, and the corner."""
        return f"{self.group}[{self.corner[0]},{self.corner[1]}]"

    @property
    def mask_name(self) -> str:
        """Path of the labels relative to the root, and the corner."""
        return f"{relative_name(self.mask_path, self.root)}[{self.corner[0]},{self.corner[1]}]"

    def target_text(self, class_names: Sequence[str]) -> str:
        """Name of the labels."""
        return self.mask_name

    @property
    def case(self) -> str:
        """Only the tile."""
        return self.name

    @property
    def group(self) -> str:
        """The scene: its tiles are never in two splits."""
        return relative_name(self.path, self.root)

    @property
    def _place(self) -> tuple[slice, slice]:
        rows, columns = (
            slice(start, start + length)
            for start, length in zip(self.corner, self.shape, strict=True)
        )
        return rows, columns

    def image(self, wanted: int | None = None) -> NDArray:
        """Pixels, (h, w, C), with NaN for invalid pixels."""
        with open_raster(self.path, wanted=wanted) as raster:
            return raster.read(*self._place)

    def mask(self) -> NDArray:
        """Labels, (h, w) or (h, w, 3), as stored."""
        with (
            open_raster(self.path) as onto,
            open_raster(self.mask_path, onto=onto, align=self.align, role="labels") as raster,
        ):
            values, inside = raster.load(*self._place)
        stored = mask_values(np.moveaxis(values, 0, -1), self.mask_name)
        if inside is None or inside.all():
            return stored
        stored = stored.astype(np.promote_types(stored.dtype, np.min_scalar_type(self.ignore)))
        stored[~inside] = self.ignore
        return stored

    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape


class SceneFolder(MaskFolder):
    """Scenes of any size with label rasters, in the layouts of `MaskFolder`.

    A scene is cut into adjacent tiles, with the last of a row or column shifted inside; training
    uses a random window of a tile, evaluation a sliding window over tiles. Tiles of one scene are
    never in two splits.

    Args:
        root: The folder.
        tile: Side of the tiles, pixels; twice the network's by default.
        fit: As in `SegmentationData`.
        **kwargs: Arguments of `MaskFolder`.
    """

    group_word = "scenes"

    def __init__(
        self,
        root: str,
        *,
        tile: int | None = None,
        fit: Fit = "window",
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, fit=fit, **kwargs)
        check_positive(tile=tile)
        self.tile = tile

    def pair(self, images: Path, masks: Path) -> tuple[MaskedImage, ...]:
        """Tiles of the scenes of a folder, with their labels."""
        scenes = cast(tuple[MaskedFile, ...], super().pair(images, masks))
        sides = [self.tile or TILE * side for side in height_and_width(self.img_size)]
        return tuple(tile for scene in scenes for tile in cut(scene, sides, self.labels.ignore))


def cut(pair: MaskedFile, sides: Sequence[int], ignore: int) -> list[SceneTile]:
    """A scene as tiles side by side, the last of a row or column shifted inside.

    Args:
        pair: The scene and its labels.
        sides: Height and width of a tile, pixels.
        ignore: Value of labels to ignore; -1 if there is none.

    Raises:
        DataError: The labels do not have the georeference of the scene.
    """
    with open_raster(pair.path) as raster:
        open_raster(pair.mask_path, onto=raster, align=pair.align, role="labels").close()
        size = raster.size
    height, width = (min(length, side) for length, side in zip(size, sides, strict=True))
    beyond = ignore if ignore >= 0 else IGNORE
    return [
        SceneTile(
            pair.path, pair.mask_path, pair.root, (row, column), (height, width), pair.align, beyond
        )
        for row in starts(size[0], height)
        for column in starts(size[1], width)
    ]


def starts(length: int, side: int) -> list[int]:
    """Start positions of tiles along an axis; the last one ends at the end of the axis."""
    return [min(start, length - side) for start in range(0, length, side)]
