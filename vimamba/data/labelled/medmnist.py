"""MedMNIST's original .npz files: bloodmnist.npz, chestmnist_224.npz and others.

Yang et al. 2023, doi:10.1038/s41597-022-01721-8. A file contains `{train,val,test}_images`, (N, S,
S) or (N, S, S, 3) uint8, and `{train,val,test}_labels`, (N, 1) indices or (N, C) zeros and ones.
Files of the same form with other dtypes and numbers of bands are also read.
"""

import zipfile

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.labelled.classification import ClassificationData
from vimamba.data.labelled.items import LabelledArray
from vimamba.data.splits import SPLITS


class MedMNIST(ClassificationData):
    """A MedMNIST file with its own splits; folds are made from its train and val.

    Args:
        root: The .npz file.
        **kwargs: Arguments of `ClassificationData`; `classes` gives the class names, by default
            their numbers.
    """

    def __init__(self, root: str, **kwargs) -> None:  # noqa: ANN003
        super().__init__(root, **kwargs)

    def read(self) -> Catalogue:
        """Read all arrays into memory."""
        if not self.root.is_file():
            raise DataError(f"root={str(self.root)!r} is not an .npz file")
        try:
            with np.load(self.root, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"root={str(self.root)!r} is not an .npz file: {error}") from None
        missing = [f"{s}_{a}" for s in SPLITS for a in ("images", "labels")]
        missing = [name for name in missing if name not in arrays]
        if missing:
            raise DataError(f"{self.root} lacks {missing}; it has {sorted(arrays)}")
        train = arrays["train_labels"]
        multi_label = train.ndim == 2 and train.shape[1] > 1
        count = train.shape[1] if multi_label else int(train.max()) + 1
        names = self.classes or [str(index) for index in range(count)]
        splits: dict[str, tuple[LabelledArray, ...]] = {}
        for split in SPLITS:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            self._check(split, images, labels, len(names), multi_label)
            labels = labels.astype(np.float32) if multi_label else labels.reshape(-1).tolist()
            splits[split] = tuple(
                LabelledArray(pixels, f"{split}_images[{number}]", label)
                for number, (pixels, label) in enumerate(zip(images, labels, strict=True))
            )
        if self.draws_fold:
            splits = self.hold_out(self.pool_for_fold(splits))
        return Catalogue(splits, self.draws_fold, tuple(names))

    def _check(
        self, split: str, images: NDArray, labels: NDArray, classes: int, multi_label: bool
    ) -> None:
        """Fail on arrays that are not 2-D images with labels in range."""
        where = f"{self.root}, {split}"
        is_volume = images.ndim == 4 and len(set(images.shape[1:])) == 1
        if images.dtype.kind not in "iuf" or images.ndim not in (3, 4) or is_volume:
            raise DataError(
                f"{where}: images of shape {images.shape} and type {images.dtype} are not 2-D; "
                "expected numbers, (N, S, S) or (N, S, S, bands)"
            )
        if len(images) != len(labels):
            raise DataError(f"{where}: {len(images)} images but {len(labels)} labels")
        width = classes if multi_label else 1
        if labels.reshape(len(labels), -1).shape[1] != width:
            raise DataError(f"{where}: labels of shape {labels.shape} do not fit {classes} classes")
        highest = 1 if multi_label else classes - 1
        if len(labels) and not (labels.min() >= 0 and labels.max() <= highest):
            raise DataError(
                f"{where}: labels lie in [{labels.min()}, {labels.max()}], expected [0, {highest}]"
            )
