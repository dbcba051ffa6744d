"""Base class of segmentation data sets: labels, preprocessing, checks, loaders."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vimamba.data.base import restore_settings
from vimamba.data.dense import DenseData
from vimamba.data.errors import DataError
from vimamba.data.folds import split_fold
from vimamba.data.items import Item
from vimamba.data.loading import SizedDataset, stream_seed
from vimamba.data.masked.augmentation import MaskTransform, train_mask_transform
from vimamba.data.masked.items import MaskedImage
from vimamba.data.masked.labels import (
    DEFAULT_LABELS,
    Labels,
    LabelTable,
    infer_labels,
    read_as_they_are,
)
from vimamba.data.masked.survey import (
    MaskReader,
    Survey,
    survey_masks,
    values_present,
    wrong_size,
)
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.splits import Division
from vimamba.labels import IGNORE

# image, mask at its own size, case, spacing
EvalItem = tuple[Tensor, Tensor, str, tuple[float, ...]]


class MaskedDataset(Dataset[Any]):
    """Preprocessed images with masks.

    Args:
        items: The images with their masks.
        prepare: From stored pixels to a tensor.
        table: From stored masks to classes.
        transform: Random augmentation of image and mask; None for evaluation, which keeps the
            mask's own size.
        seed: Seed of all random streams.
    """

    def __init__(
        self,
        items: Sequence[MaskedImage],
        prepare: Preprocessing,
        table: LabelTable,
        transform: MaskTransform | None,
        seed: int,
    ) -> None:
        self.items = items
        self.prepare = prepare
        self.table = table
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor] | EvalItem:
        """(C, h, w) float32 and (H, W) uint8; for evaluation also the case and its spacing."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        item = self.items[index]
        mask = self.table.indices(item.mask(), item.mask_name)
        known = self.prepare.known(item)
        if known.shape[:2] != mask.shape:
            raise DataError(wrong_size(item.name, known.shape[:2], mask.shape))
        if known.dtype.kind == "f":  # invalid pixels are ignored
            mask[np.isnan(known).all(-1)] = IGNORE
        pixels = self.prepare.filled(known)
        if self.transform is None:
            image = self.prepare.tensor(self.prepare.resize(pixels))
            return image, torch.from_numpy(mask), item.case, item.spacing
        pixels, mask = self.transform(pixels, mask, stream_seed(self.seed, epoch, index))
        return self.prepare.tensor(pixels), torch.from_numpy(np.ascontiguousarray(mask))


class SegmentationData(DenseData):
    """Base of the segmentation data sets; a subclass only has to `read`.

    Args:
        root: Folder or file with the data.
        labels: Meaning of the mask values.
        align: Resample files of a case that are not on the grid of its first image onto that grid,
            masks with the nearest value, images linearly; otherwise they are errors.
        **kwargs: Arguments of `DenseData`.
    """

    unit: ClassVar[str] = "cases"

    def __init__(
        self,
        root: str,
        *,
        labels: Labels = DEFAULT_LABELS,
        align: bool = False,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        self.labels = restore_settings(Labels, labels)
        self.align = align

    # name of a group
    group_word = "groups"

    def groups_of(self, items: Sequence[Item]) -> list[str]:
        """Group of each image; its name if it has no group."""
        return super().groups_of(items) or [item.name for item in items]

    def draw_parts(
        self, items: Sequence[Any], groups: Sequence[str] | None, fractions: dict[str, float]
    ) -> Division:
        """Make a split by the fractions."""
        alone = groups is None or len(set(groups)) == len(groups)
        return super().draw_parts(items, None if alone else groups, fractions)

    def draw_fold(self, items: Sequence[Any], groups: Sequence[str] | None, fold: int) -> Division:
        """Make a fold whose groups have each class as often as those of the others.

        All masks are read for it.
        """
        present = values_present(self.mask_reader.look(items))
        return split_fold(present, groups, fold, self.folds, self.seed, once=True)

    @cached_property
    def mask_reader(self) -> MaskReader:
        """Reads each mask once, for folds and for the survey."""
        return MaskReader(self.labels.colors, self.workers)

    @cached_property
    def survey(self) -> Survey:
        """All masks, read once.

        Raises:
            DataError: Files cannot be read or do not fit together; the message names them.
        """
        return survey_masks(self.in_order, self.mask_reader)

    @cached_property
    def table(self) -> LabelTable:
        """Classes of the mask values."""
        labels = self.labels
        is_known = bool(labels.colors or (labels.classes and labels.values))
        found = {} if is_known else self.survey.holders
        kinds = {} if is_known else self.survey.kinds
        table = infer_labels(labels, found, kinds, self.root)
        if self.whole is None:
            return table
        return read_as_they_are(table, self.survey.holders, self.survey.kinds, self.root)

    def take_whole(self, split: str) -> None:
        """Use all images as one split instead of making a split, to score other data."""
        super().take_whole(split)
        for found in ("survey", "table"):
            self.__dict__.pop(found, None)

    def notes(self) -> list[str]:
        """Oddities of the data, and the number of ignored pixels."""
        ignored = self.survey.ignored(self.table)
        return [*super().notes(), *([ignored] if ignored else [])]

    def tallies(self) -> dict[str, dict[str, int]]:
        """Numbers of volumes, and of patients or other groups, if these are not single images."""
        names, cases, groups = (
            {split: values(items) for split, items in self.in_order.items()}
            for values in (
                lambda items: [item.name for item in items],
                lambda items: [item.case for item in items],
                self.groups_of,
            )
        )
        shown = {}
        if cases != names:
            shown["volumes"] = cases
        if self.group_pattern is not None or groups not in (names, cases):
            shown[self.group_word] = groups
        return {
            what: {split: len(set(found)) for split, found in parts.items()}
            for what, parts in shown.items()
        }

    def inferred_settings(self) -> dict[str, Any]:
        """Inferred ranges and labels, so that later commands need not infer them again."""
        table = self.table
        return {
            **super().inferred_settings(),
            "labels.classes": table.names,
            "labels.values": table.values,
            "labels.ignore": table.ignore,
            # a published layout's own, which later commands do not add to given classes
            "labels.colors": self.labels.colors,
            "labels.background": self.labels.background,
        }

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the classes."""
        return self.table.names

    @property
    def label_values(self) -> list[int]:
        """Value of each class in a mask."""
        return self.table.values

    @property
    def background(self) -> bool:
        """Whether the first class is background (excluded from mean Dice)."""
        return self.labels.background

    @property
    def class_counts(self) -> list[int]:
        """Training pixels of each class."""
        return self.count("train").tolist()

    def count(self, split: str) -> NDArray[np.int64]:
        """Pixels of each class in a split, (num_classes,)."""
        found = self.survey.pixels.get(split, {})
        return np.asarray([found.get(value, 0) for value in self.table.values], dtype=np.int64)

    def check(self) -> None:
        """Fail, before any training, on pairs that do not fit or classes that are missing.

        Raises:
            DataError: The message says what is wrong and where.
        """
        self.check_splits()
        self.survey.check_values(self.table)
        empty = [self.class_names[i] for i in np.flatnonzero(self.count("train") == 0)]
        if empty and self.limit is None:
            raise DataError(f"root={str(self.root)!r}: no training pixel of class {empty}")

    def count_units(self, split: str) -> int:
        """Cases of a split."""
        return len({item.case for item in self.items(split)})

    def dataset(self, split: str, *, augmented: bool = False) -> SizedDataset:
        """Preprocessed images of a split."""
        transform = self.random_changes(train_mask_transform) if augmented else None
        return MaskedDataset(
            self.items(split), self.preprocessing, self.table, transform, self.seed
        )

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Images of a split in order, as lists, because their masks have their own sizes.

        Outside of training, volumes are scored as a whole, so no process may get only part of one.
        """
        training = self.trainer is not None and self.trainer.state.fn == "fit"
        return self._eval_loader(split, whole=split == "test" or not training, collate=list)
