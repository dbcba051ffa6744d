"""Converts the label files of a pair to class maps.

    binary    change
    semantic  change, before, after: classes at either date, 0 for unchanged pixels
    damage    building, damage: 0 without a building

Sizes: H x W pixels, M maps.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vimamba.data.errors import DataError
from vimamba.data.masked.items import read_mask
from vimamba.data.masked.labels import LabelTable, gray_values
from vimamba.data.paired.items import DatePair
from vimamba.data.paired.layouts import Kind
from vimamba.labels import IGNORE

MAPS: dict[str, tuple[str, ...]] = {
    "binary": ("change",),
    "semantic": ("change", "before", "after"),
    "damage": ("building", "damage"),
}
# buildings of unknown damage
UNCLASSIFIED = "un-classified"


@dataclass(frozen=True)
class Truths:
    """How labels are read.

    Attributes:
        kind: Kind of the labels.
        names: Names of the classes, in order.
        colors: Color of each class of a semantic set, for color labels.
    """

    kind: Kind
    names: Sequence[str]
    colors: Sequence[Sequence[int]] | None = None

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the M maps."""
        return MAPS[self.kind]

    def read(self, pair: DatePair) -> NDArray[np.uint8]:
        """(M, H, W) classes, `IGNORE` for unknown ones.

        Raises:
            DataError: A file cannot be read, has values that are not classes, or has another size
                than the others; the message names it.
        """
        files = pair.label_files
        stored = {role: read_mask(path) for role, path in files.items()}
        sizes = {values.shape[:2] for values in stored.values()}
        if len(sizes) > 1:
            raise DataError(f"the labels of {pair.name} differ in size: {sorted(sizes)}")
        maps = self.maps_of(stored, files)
        if self.kind == "damage" and pair.notes is not None and pair.notes.is_file():
            # still a building
            maps[1][outline_unclassified(pair.notes, maps.shape[1:])] = IGNORE
        return maps

    def maps_of(
        self, stored: Mapping[str, NDArray], files: Mapping[str, Path]
    ) -> NDArray[np.uint8]:
        """(M, H, W) classes from stored values.

        Args:
            stored: (H, W) integers or (H, W, 3) colors of each kind of label, all of one size.
            files: Where they are stored, for errors.

        Raises:
            DataError: A value is not a class; the message names it.
        """

        def changed(role: str) -> NDArray[np.uint8]:
            return changed_pixels(stored[role], files[role])

        if self.kind == "binary":
            return changed("change")[None]
        if self.kind == "semantic":
            dates = [
                self._classes(stored[role], files[role])
                for role in ("labels before", "labels after")
            ]
            change = ((dates[0] != 0) | (dates[1] != 0)).astype(np.uint8)
            if "change" in stored:
                change = changed("change")
            change[(dates[0] == IGNORE) | (dates[1] == IGNORE)] = IGNORE
            return np.stack([change, *dates])
        damage = self._classes(stored["damage"], files["damage"], last=IGNORE)
        building = np.where(damage == IGNORE, IGNORE, damage != 0).astype(np.uint8)
        if "buildings" in stored:
            building = changed("buildings")
        return np.stack([building, damage])

    def _classes(self, stored: NDArray, path: Path, last: int | None = None) -> NDArray[np.uint8]:
        """(H, W) classes; with `last`, all values beyond the classes are ignored."""
        count = len(self.names)
        if last is not None:
            stored = gray_values(stored, str(path))
            stored = np.where(stored < count, stored, last)
        colors = None if self.colors is None else [list(color) for color in self.colors]
        return LabelTable(list(self.names), list(range(count)), IGNORE, colors).indices(
            stored, str(path)
        )


def changed_pixels(stored: NDArray, path: Path) -> NDArray[np.uint8]:
    """(H, W): 1 where a label is greater than 0, whether 1 or 255."""
    return (gray_values(stored, str(path)) > 0).astype(np.uint8)


def outline_unclassified(path: Path, size: Sequence[int]) -> NDArray[np.bool_]:
    """(H, W): buildings that an xBD outline file marks as unclassified.

    Raises:
        DataError: The file does not have xBD's format.
    """
    canvas = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]["xy"]
        for feature in features:
            if feature["properties"].get("subtype") != UNCLASSIFIED:
                continue
            outer = feature["wkt"].split("(")[2].split(")")[0]
            numbers = [float(word) for word in re.findall(r"-?[\d.]+(?:e-?\d+)?", outer)]
            draw.polygon(list(zip(numbers[::2], numbers[1::2], strict=True)), fill=1)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        raise DataError(
            f"{path} does not hold outlines in the format of xBD's labels: {error!r}"
        ) from None
    return np.asarray(canvas, dtype=bool)
