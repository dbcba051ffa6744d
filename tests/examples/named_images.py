"""A custom data set in one file: images whose names start with their class, as in cat_12.png.

`vimamba fit --import tests/examples/named_images.py --data.class_path named_images.NamedImages
--data FOLDER` trains on it.
"""

from vimamba.data import Catalogue, ClassificationData, DataError
from vimamba.data.labelled.items import LabelledFile
from vimamba.data.listing import list_images


class NamedImages(ClassificationData):
    """Images of one folder, classified by the part of their names before `_`."""

    def read(self) -> Catalogue:
        """Find the images and their classes."""
        paths = list_images(self.root, self.remarks)
        if not paths:
            raise DataError(f"root={str(self.root)!r} holds no image")
        words = [path.name.split("_")[0] for path in paths]
        names = self.classes or sorted(set(words))
        if unknown := sorted(set(words) - set(names)):
            raise DataError(f"root={str(self.root)!r}: {unknown} are not among {names}")
        items = tuple(
            LabelledFile(path, self.root, names.index(word))
            for path, word in zip(paths, words, strict=True)
        )
        return Catalogue(self.divide(items), drawn=True, class_names=tuple(names))
