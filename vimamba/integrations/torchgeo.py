"""torchgeo's samples as our data modules give images to their networks.

torchgeo's data sets take a function of their samples as `transforms`: `SampleTransform` is one.
Sizes: C channels, H x W pixels of a sample, h x w those the network gets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimamba.data.dense import DenseData
from vimamba.data.formats import as_numbers
from vimamba.data.items import OneImage
from vimamba.data.masked.augmentation import (
    PRESETS,
    MaskedAugmentation,
    MaskTransform,
    Preset,
    random_changes,
    train_mask_transform,
)
from vimamba.data.masked.labels import LabelTable
from vimamba.data.masked.segmentation import SegmentationData
from vimamba.data.paired.augmentation import PairTransform
from vimamba.data.preprocessing import Preprocessing
from vimamba.data.resizing import resize_mask
from vimamba.labels import IGNORE


@dataclass(frozen=True)
class _Values(OneImage):
    """An image of a sample.

    Attributes:
        values: (H, W, C), as `StoredImage.image` gives them.
        name: What to call it in an error.
    """

    values: NDArray
    name: str = "of a sample"

    def image(self, wanted: int | None = None) -> NDArray:
        """The values."""
        return self.values


class SampleTransform:
    """From a torchgeo sample to what a network of ours gets.

    A sample has an `image`, (C, H, W) float32 of stored values, or (2, C, H, W) of two dates, and
    mostly a `mask` of whole numbers, (H, W) or (1, H, W). The result has the image normalized, of
    the size that `prepare` says, and the mask as int64 of that size, 255 where nothing is known of
    the image: give the trainer `ignore_index=255`. All that is no tensor is left out, as a trainer
    cannot move it to a device.

    Args:
        prepare: From stored values to the network's input, as a data module or an export has it.
        augmentation: Random changes of image and mask, both dates moved together, drawn from
            torch's generator; None for evaluation.
        table: Classes of the mask's values; by default the values are the classes.
        dtype: What the files hold, of which torchgeo makes float32. Images of "uint8" end at 255.
        nodata: Value of pixels of which nothing is known.

    Raises:
        ValueError: `prepare` is that of a classification.
    """

    def __init__(
        self,
        prepare: Preprocessing,
        augmentation: MaskedAugmentation | Preset | None = None,
        *,
        table: LabelTable | None = None,
        dtype: str = "float32",
        nodata: float | None = None,
    ) -> None:
        if prepare.fit == "crop":
            raise ValueError("prepare is of a classification; its fit must be 'squash' or 'window'")
        self.prepare, self.table = prepare, table
        self.dtype, self.nodata = np.dtype(dtype), nodata
        chosen = PRESETS[augmentation] if isinstance(augmentation, str) else augmentation
        self.augmentation = chosen

    @classmethod
    def like(cls, data: DenseData, *, augmented: bool = False, **kwargs: Any) -> "SampleTransform":
        """As a data module does it for its own images and masks.

        Args:
            data: Its preprocessing, changes and, of a segmentation, labels are taken.
            augmented: Change at random, for training.
            **kwargs: `dtype` and `nodata`.
        """
        table = data.table if isinstance(data, SegmentationData) else None
        changes = data.augmentation if augmented else None
        return cls(data.preprocessing, changes, table=table, **kwargs)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Tensor]:
        """Prepare a sample.

        Raises:
            DataError: Values are no image or no classes.
        """
        image = sample["image"]
        known = [self._known(date) for date in (image if image.ndim == 4 else image[None])]
        given = sample.get("mask")
        mask = self._classes(given, known)
        dates = [self.prepare.filled(date) for date in known]
        dates, mask = self._placed(dates, mask)
        tensors = [self.prepare.tensor(date) for date in dates]
        found = {key: value for key, value in sample.items() if isinstance(value, Tensor)}
        found["image"] = torch.stack(tensors) if image.ndim == 4 else tensors[0]
        if given is not None:
            leading = tuple(given.shape[:-2])
            classes = torch.from_numpy(np.ascontiguousarray(mask)).long()
            found["mask"] = classes.reshape(*leading, *mask.shape)
        return found

    def _known(self, date: Tensor) -> NDArray:
        """(C, H, W) to (H, W, C) with NaN where nothing is known."""
        values = date.permute(1, 2, 0).numpy().astype(self.dtype)
        return self.prepare.known(cast(Any, _Values(as_numbers(values, self.nodata))))

    def _classes(self, mask: Tensor | None, known: Sequence[NDArray]) -> NDArray[np.uint8]:
        """(H, W) classes, `IGNORE` where nothing is known of one of the dates."""
        size = known[0].shape[:2]
        stored = np.zeros(size, np.int64) if mask is None else mask.reshape(size).numpy()
        table = self.table
        classes = stored.astype(np.uint8) if table is None else table.indices(stored, "of a sample")
        for date in known:
            if date.dtype.kind == "f":
                classes[np.isnan(date).all(-1)] = IGNORE
        return classes

    def _placed(
        self, dates: list[NDArray], mask: NDArray[np.uint8]
    ) -> tuple[list[NDArray], NDArray[np.uint8]]:
        """Dates (H, W, C) and classes at the network's size, changed at random in training."""
        prepare = self.prepare
        if self.augmentation is None:
            resized = [prepare.resize(date) for date in dates]
            return resized, resize_mask(mask, cast(Any, resized[0].shape[:2]))
        seed = int(torch.randint(2**31, (), dtype=torch.int64, device="cpu"))
        if len(dates) == 1:
            pixels, mask = self._change_one(dates[0], mask, seed)
            return [pixels], mask
        changed, (mask,) = self._change_two(dates, mask[None], seed)
        return changed, mask

    @cached_property
    def _change_one(self) -> MaskTransform:
        assert self.augmentation is not None
        return random_changes(train_mask_transform, self.augmentation, self.prepare)

    @cached_property
    def _change_two(self) -> PairTransform:
        assert self.augmentation is not None
        return random_changes(PairTransform, self.augmentation, self.prepare)
