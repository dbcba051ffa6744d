"""Published aerial data sets that `MaskFolder` does not read, by a table of layouts.

    loveda     {Train,Val,Test}/{Urban,Rural}/{images_png,masks_png}/N.png; 0 is unlabeled
    potsdam    top_potsdam_2_10_RGBIR.tif (or RGB, IRRG), top_potsdam_2_10_label.tif in color
    vaihingen  top/top_mosaic_09cm_area1.tif, top_mosaic_09cm_area1.tif in color in another folder
    isaid      {train,val}/images/P0000_0_896_0_896.png and, in color or numbers,
               {train,val}/.../P0000_0_896_0_896_instance_color_RGB.png

Potsdam and Vaihingen are split as in the contest: images whose labels were held back are the test
split. A val split is made if there is none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vimamba.data.base import check_positive
from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.listing import check_files, list_images
from vimamba.data.masked.items import MaskedFile, MaskedImage
from vimamba.data.masked.labels import DEFAULT_LABELS, Labels
from vimamba.data.masked.matching import by_name, match_names
from vimamba.data.masked.scene_folder import cut
from vimamba.data.masked.segmentation import SegmentationData
from vimamba.data.splits import SPLIT_WORDS

AerialLayout = Literal["loveda", "potsdam", "vaihingen", "isaid"]
ISPRS: dict[str, list[int]] = {
    "impervious surfaces": [255, 255, 255],
    "building": [0, 0, 255],
    "low vegetation": [0, 255, 255],
    "tree": [0, 255, 0],
    "car": [255, 255, 0],
    "clutter": [255, 0, 0],
}
ISAID: dict[str, list[int]] = {
    "background": [0, 0, 0],
    "ship": [0, 0, 63],
    "storage tank": [0, 63, 63],
    "baseball diamond": [0, 63, 0],
    "tennis court": [0, 63, 127],
    "basketball court": [0, 63, 191],
    "ground track field": [0, 63, 255],
    "bridge": [0, 127, 63],
    "large vehicle": [0, 127, 127],
    "small vehicle": [0, 0, 127],
    "helicopter": [0, 0, 191],
    "swimming pool": [0, 0, 255],
    "roundabout": [0, 191, 127],
    "soccer ball field": [0, 127, 191],
    "plane": [0, 127, 255],
    "harbor": [0, 100, 155],
}
LOVEDA = ["background", "building", "road", "water", "barren", "forest", "agriculture"]


def _colored(colors: Mapping[str, list[int]], *, background: bool) -> Labels:
    return Labels(classes=list(colors), colors=list(colors.values()), background=background)


@dataclass(frozen=True)
class Naming:
    """Naming scheme of a data set's files, by their paths relative to the root.

    Attributes:
        image: Regular expression for images; its groups are the name of the image.
        mask: The same for masks.
        labels: Labels of the masks.
        train: Training names, all others being the test split; if folders are not splits.
    """

    image: str
    mask: str
    labels: Labels
    train: frozenset[str] = field(default_factory=frozenset)


_POTSDAM = frozenset(
    f"{row}_{column}"
    for row, columns in ((2, (10, 13)), (3, (10, 13)), (4, (10, 13)), (5, (10, 13)),
                         (6, (7, 13)), (7, (7, 13)))
    for column in range(*columns)
)  # fmt: skip
_VAIHINGEN = frozenset(map(str, (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)))
NAMINGS: dict[str, Naming] = {
    "loveda": Naming(
        r"(?i)(train|val|test)/(urban|rural)/images_png/([^/]+)\.png",
        r"(?i)(train|val|test)/(urban|rural)/masks_png/([^/]+)\.png",
        Labels(classes=LOVEDA, values=list(range(1, 8)), ignore=0, background=False),
    ),
    "potsdam": Naming(
        r"(?:.*/)?top_potsdam_(\d+_\d+)_(?:RGBIR|RGB|IRRG)\.tif",
        r"(?:.*/)?top_potsdam_(\d+_\d+)_label\.tif",
        _colored(ISPRS, background=False),
        _POTSDAM,
    ),
    "vaihingen": Naming(
        r"(?:.*/)?top/top_mosaic_09cm_area(\d+)\.tif",
        r"(?!(?:.*/)?top/)(?:.*/)?top_mosaic_09cm_area(\d+)\.tif",
        _colored(ISPRS, background=False),
        _VAIHINGEN,
    ),
    "isaid": Naming(
        r"(?:.*/)?(train|val|test)/(?:.*/)?(P\d+(?:_\d+)*)\.png",
        r"(?:.*/)?(train|val|test)/(?:.*/)?(P\d+(?:_\d+)*)_instance_color_RGB\.png",
        _colored(ISAID, background=True),
    ),
}


class AerialFolder(SegmentationData):
    """A published data set of aerial images; see the module for the layouts.

    Args:
        root: The folder.
        layout: Name of the data set.
        tile: Cut TIFF images into tiles of this side, pixels, which are read by window (extra
            `geo`); tiles of one image are never in two splits. By default images are read whole.
        labels: Labels of the masks; as published by default.
        **kwargs: Arguments of `SegmentationData`.
    """

    def __init__(
        self,
        root: str,
        *,
        layout: AerialLayout,
        tile: int | None = None,
        labels: Labels = DEFAULT_LABELS,
        **kwargs,  # noqa: ANN003
    ) -> None:
        if layout not in NAMINGS:
            raise DataError(f"layout={layout!r} is unknown; choose from {sorted(NAMINGS)}")
        self.naming = NAMINGS[layout]
        given = Labels(**labels) if isinstance(labels, dict) else labels
        super().__init__(
            root, labels=self.naming.labels if given == DEFAULT_LABELS else given, **kwargs
        )
        check_positive(tile=tile)
        self.tile = tile

    def read(self) -> Catalogue:
        """Pair the files by their names.

        Raises:
            DataError: Files have no partner, or none matches the layout.
        """
        if not self.root.is_dir():
            raise DataError(f"root={str(self.root)!r} is not a folder")
        files = list_images(self.root, self.remarks)
        images, masks = (self._named(files, form) for form in (self.naming.image, self.naming.mask))
        if not images:
            raise DataError(
                f"root={str(self.root)!r} has no image whose path matches {self.naming.image}"
            )
        labelled = {self._split(name) for name in masks}
        for split in {self._split(name) for name in images} - labelled:
            if split != "test":
                raise DataError(f"root={str(self.root)!r}: there are no masks for {split}")
            alone = [name for name in images if self._split(name) == split]
            self.remarks.say(f"{split}: {len(alone)} images without masks, not scored")
            images = {name: path for name, path in images.items() if name not in alone}
        match_names(images, masks, self.root, self.root)
        check_files([*images.values(), *masks.values()])
        splits: dict[str, tuple[MaskedImage, ...]] = {}
        for name, path in images.items():
            item = MaskedFile(path, self.root, masks[name], align=self.align)
            items = [item] if self.tile is None else cut(item, [self.tile] * 2, self.labels.ignore)
            split = self._split(name)
            splits[split] = (*splits.get(split, ()), *items)
        return self.with_val(splits)

    def _named(self, files: list[Path], form: str) -> dict[str, Path]:
        """Files whose paths match a pattern, by name."""
        found = {path: re.fullmatch(form, path.relative_to(self.root).as_posix()) for path in files}
        kept = {path: "/".join(match.groups()) for path, match in found.items() if match}
        return by_name(kept, lambda path: kept[path])

    def _split(self, name: str) -> str:
        """The split of a name."""
        if self.naming.train:
            return "train" if name in self.naming.train else "test"
        return SPLIT_WORDS[name.split("/")[0].lower()]
