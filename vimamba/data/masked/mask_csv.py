"""A CSV file of images with masks: columns image, mask and optionally split and patient.

Images of one patient are never in different splits. With `fold`, patients are divided into equal
parts, one of which is the val split; a split column then only has to mark the test images. Test
images without a mask are skipped: they are for prediction.
"""

from pathlib import Path

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue, take
from vimamba.data.listing import composed
from vimamba.data.lists import Row, check_once, find_listed, note_ungrouped, read_rows
from vimamba.data.masked.items import MaskedFile
from vimamba.data.masked.segmentation import SegmentationData
from vimamba.data.splits import given_division, split_word


class MaskCSV(SegmentationData):
    """Images and masks listed in a CSV file.

    Args:
        root: The CSV file.
        image_root: Folder that relative paths start from; the CSV's own by default.
        image_column: Column of the image's path.
        mask_column: Column of the mask's path.
        split_column: Column with train, val or test; used if present.
        patient_column: Column of the group; used if present.
        **kwargs: Arguments of `SegmentationData`.
    """

    group_word = "patients"

    def __init__(
        self,
        root: str,
        *,
        image_root: str | None = None,
        image_column: str = "image",
        mask_column: str = "mask",
        split_column: str = "split",
        patient_column: str = "patient",
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        self.image_root = Path(image_root) if image_root else self.root.parent
        self.image_column, self.mask_column = image_column, mask_column
        self.split_column, self.patient_column = split_column, patient_column

    def read(self) -> Catalogue:
        """Read the list; the files must exist."""
        rows = self._with_masks(
            read_rows(self.root, [self.image_column, self.mask_column], self.remarks)
        )
        images = find_listed(rows, self.image_column, self.image_root, self.root)
        masks = find_listed(rows, self.mask_column, self.image_root, self.root, "mask")
        check_once(rows, images, self.root)
        items = tuple(
            MaskedFile(
                image,
                self.image_root,
                mask,
                composed(row.get(self.patient_column, "")),
                align=self.align,
            )
            for row, image, mask in zip(rows, images, masks, strict=True)
        )
        alone = [row for row in rows if not row.get(self.patient_column)]
        note_ungrouped(self.remarks, len(alone), len(rows), self.patient_column)
        if self.split_column not in rows[0] or self.split_csv is not None or self.whole:
            return Catalogue(self.divide(items), drawn=True)
        given = given_division(rows, self.split_column, self.root)
        return self.with_val({split: take(items, at) for split, at in given.items()})

    def _with_masks(self, rows: list[Row]) -> list[Row]:
        """The usable rows, those with a mask; only test images may have none."""
        without = [row for row in rows if not row[self.mask_column]]
        for row in without:
            where = f"{self.root}, line {row.line}"
            if split_word(row.get(self.split_column) or "train", where) != "test":
                raise DataError(f"{where}: the mask is empty")
        if without:
            text = f"{len(without)} test images without masks, not scored; see `predict`"
            self.remarks.say(f"{self.root}: {text}")
        if len(without) == len(rows):
            raise DataError(f"{self.root} lists no mask")
        return [row for row in rows if row[self.mask_column]]
