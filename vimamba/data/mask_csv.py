"""A CSV file that lists images with masks: columns image, mask and, if wanted, split and patient.

Images of one patient never fall into different splits. With `fold`, patients are divided into equal
parts, one of which is the val split; a split column then only has to say which images are for test.
"""

from pathlib import Path

import numpy as np

from vimamba.data.csv_list import read_rows
from vimamba.data.errors import DataError
from vimamba.data.masked import FilePair, MaskedCatalogue
from vimamba.data.segmentation import SegmentationData, as_samples
from vimamba.data.splits import Division, check_groups, split_word


class MaskCSV(SegmentationData):
    """Images and masks listed in a CSV file.

    Args:
        root: The CSV file.
        image_root: Folder that relative paths start from; the CSV's own by default.
        image_column: Column of the image's path.
        mask_column: Column of the mask's path.
        split_column: Column of train, val or test; used if it is there.
        patient_column: Column of what belongs together; used if it is there.
        **kwargs: Arguments of `SegmentationData`.
    """

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

    def read(self) -> MaskedCatalogue:
        """Read the list; the files must exist."""
        rows = read_rows(self.root, [self.image_column, self.mask_column])
        items: list[FilePair] = []
        lines: dict[Path, int] = {}
        for line, row in enumerate(rows, 2):
            image, mask = (self.image_root / row[c] for c in (self.image_column, self.mask_column))
            for what, path in (("image", image), ("mask", mask)):
                if not path.is_file():
                    raise DataError(f"{self.root}, line {line}: {what} {path} does not exist")
            if lines.setdefault(image, line) != line:
                raise DataError(
                    f"{self.root}, lines {lines[image]} and {line}: {image} is there twice"
                )
            group = row.get(self.patient_column, "")
            items.append(FilePair(image, mask, self.image_root, group))
        samples = as_samples(items)
        if self.split_column not in rows[0] or self.split_csv is not None or self.whole:
            return MaskedCatalogue(self.divide(samples), drawn=True)
        words = np.asarray([split_word(row[self.split_column], self.root) for row in rows])
        if self.draws_fold:  # from all that is not for test
            words[words == "val"] = "train"
        given: Division = {str(word): np.flatnonzero(words == word) for word in np.unique(words)}
        check_groups(given, self.groups_of(samples))
        splits = {split: samples.take(at) for split, at in given.items()}
        if "train" not in splits or "val" in splits:
            return MaskedCatalogue(splits, drawn=False)
        return MaskedCatalogue(self.hold_out(splits), drawn=True)
