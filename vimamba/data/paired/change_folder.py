"""Folders of two dates with change labels, for `vimamba fit --task change`."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vimamba.data.dense import DenseData
from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.loading import stream_seed
from vimamba.data.masked.augmentation import MaskedAugmentation
from vimamba.data.masked.augmentation import Preset as AugmentationPreset
from vimamba.data.masked.items import read_mask
from vimamba.data.masked.labels import gray_values
from vimamba.data.paired.agreement import (
    HARMLESS,
    Problem,
    different_dates,
    different_labels,
    examine,
)
from vimamba.data.paired.augmentation import PairTransform
from vimamba.data.paired.items import DatePair
from vimamba.data.paired.layouts import PRESETS as LAYOUTS
from vimamba.data.paired.layouts import (
    SECOND,
    XBD,
    Kind,
    Layout,
    Named,
    Preset,
    find_layout,
    find_pairs,
)
from vimamba.data.paired.truths import Truths
from vimamba.data.preprocessing import Fit, Preprocessing
from vimamba.labels import IGNORE

# both dates, maps at their own size, name
EvalPair = tuple[Tensor, Tensor, str]
MOST_NAMED = 5


class PairDataset(Dataset[Any]):
    """Preprocessed pairs of dates with their label maps.

    Args:
        pairs: The pairs.
        prepare: From stored pixels to a tensor.
        truths: From label files to maps.
        transform: Random augmentation; None for evaluation, which keeps the maps' own size.
        seed: Seed of all random streams.
    """

    def __init__(
        self,
        pairs: Sequence[DatePair],
        prepare: Preprocessing,
        truths: Truths,
        transform: PairTransform | None,
        seed: int,
    ) -> None:
        self.pairs, self.prepare, self.truths = pairs, prepare, truths
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor] | EvalPair:
        """(2, C, h, w) float32 and (M, H, W) uint8; for evaluation also the name.

        Raises:
            DataError: A file cannot be read, or dates and labels differ in size.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pair, prepare = self.pairs[index], self.prepare
        dates, known = read_dates(pair, prepare)
        truth = self.truths.read(pair)
        if truth.shape[1:] != known.shape:
            raise DataError(different_labels(pair, known.shape, truth.shape[1:]))
        truth[:, ~known] = IGNORE
        if self.transform is None:
            resized = [prepare.tensor(prepare.resize(date)) for date in dates]
            return torch.stack(resized), torch.from_numpy(truth), pair.name
        changed, truth = self.transform(dates, truth, stream_seed(self.seed, epoch, index))
        tensors = [prepare.tensor(date) for date in changed]
        return torch.stack(tensors), torch.from_numpy(truth)


def read_dates(pair: DatePair, prepare: Preprocessing) -> tuple[list[NDArray], NDArray[np.bool_]]:
    """Both dates, (H, W, C), with invalid pixels filled, and the pixels valid in both, (H, W).

    Raises:
        DataError: They differ in size.
    """
    found = [prepare.known(image) for image in pair.images()]
    before, after = (date.shape[:2] for date in found)
    if before != after:
        raise DataError(different_dates(pair, before, after))
    known = np.ones(before, dtype=bool)
    for date in found:
        if date.dtype.kind == "f":
            known &= ~np.isnan(date).all(-1)
    return [prepare.filled(date) for date in found], known


class ChangeFolder(DenseData):
    """Pairs of images of two dates with labels of change, of land cover, or of damage.

    Args:
        root: The folder.
        layout: Folder layout of a data set; inferred from the folder names by default.
        before: Name of the folders with the first date, if it is not the layout's.
        after: Name of the folders with the second date, likewise.
        masks: Name of the folders with labels of change, likewise; or two names, of the land cover
            labels of each date.
        classes: Names of the classes of a semantic set, the first of which is unchanged. By default
            SECOND's if labels have its colors, or as many as the labels have values.
        colors: Red, green and blue of each class, for color labels; SECOND's by default.
        fit: "window" trains on random windows and evaluates with a sliding window, "squash" resizes
            whole images.
        augmentation: Random changes to training pairs, by the name of a preset (aerial: flips and
            quarter turns) or each by name. Geometric changes apply to both dates and the labels,
            color changes to each date separately.
        **kwargs: Arguments of `DenseData`.
    """

    unit: ClassVar[str] = "pairs"

    def __init__(
        self,
        root: str,
        *,
        layout: Preset | None = None,
        before: str | None = None,
        after: str | None = None,
        masks: list[str] | str | None = None,
        classes: list[str] | None = None,
        colors: list[list[int]] | None = None,
        fit: Fit = "window",
        augmentation: MaskedAugmentation | AugmentationPreset = "aerial",
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, fit=fit, augmentation=augmentation, **kwargs)
        self.layout_name: Preset | None = layout
        self.named = Named(before, after, [masks] if isinstance(masks, str) else masks)
        self.classes, self.colors = classes, colors

    @cached_property
    def layout(self) -> Layout:
        """The folders of the data set."""
        return find_layout(self.root, self.layout_name, self.named)

    def read(self) -> Catalogue:
        """Pair the files; make missing splits."""
        splits, divided = find_pairs(self.root, self.layout, self.remarks)
        if not any(splits.values()):
            raise DataError(f"root={str(self.root)!r} holds no pair with labels")
        if not divided:
            return Catalogue(self.divide(splits["train"]), drawn=True)
        splits = self.pool_for_fold(splits)
        if self.split_csv is None and ("val" in splits or "train" not in splits):
            return Catalogue(splits, drawn=False)
        return Catalogue(self.hold_out(splits), drawn=True)

    @property
    def kind(self) -> Kind:
        """Kind of the labels: "binary", "semantic" or "damage"."""
        kinds: set[Kind] = {layout.kind for layout in LAYOUTS.get(self.layout_name or "", ())}
        return kinds.pop() if len(kinds) == 1 else self.layout.kind

    @cached_property
    def truths(self) -> Truths:
        """How the labels are read.

        Raises:
            DataError: Color labels without given colors, or class names for labels whose names are
                fixed.
        """
        if self.kind != "semantic":
            if self.classes is not None and len(self.classes) != len(FIXED[self.kind]):
                raise DataError(
                    f"classes={self.classes}: labels of kind {self.kind!r} have the classes "
                    f"{FIXED[self.kind]}"
                )
            return Truths(self.kind, self.classes or FIXED[self.kind])
        colors, names = self.colors, self.classes
        if colors is None and self._is_colored():
            colors = list(SECOND.values())
            names = names or list(SECOND)
        if names is None and colors is None:
            names = self._count_classes()
        names = names or ["unchanged", *(f"class {i}" for i in range(1, len(colors or ())))]
        if colors is not None and len(colors) != len(names):
            raise DataError(f"colors names {len(colors)} colors for {len(names)} classes")
        return Truths("semantic", names, colors)

    def _label_files(self) -> list[Any]:
        pairs = [pair for split in self.in_order.values() for pair in split]
        return [pair.files[f"labels {date}"] for pair in pairs for date in ("before", "after")]

    def _is_colored(self) -> bool:
        first = read_mask(self._label_files()[0])
        return first.ndim == 3 and not (first == first[:, :, :1]).all()

    def _count_classes(self) -> list[str]:
        """Class names for the values in the labels; SECOND's names for SECOND."""
        highest = 1
        for path in self._label_files():
            values = gray_values(read_mask(path), str(path))
            highest = max(highest, int(values[values != IGNORE].max(initial=0)))
        if self.layout_name == "second" and highest < len(SECOND):
            return list(SECOND)
        return ["unchanged", *(f"class {value}" for value in range(1, highest + 1))]

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the classes."""
        return list(self.truths.names)

    @cached_property
    def counts(self) -> dict[str, NDArray[np.int64]]:
        """Pixels of each class in each map of each split, (M, num_classes); all labels are read.

        Raises:
            DataError: Labels cannot be read or do not fit; the message names the first few.
        """
        found: dict[str, NDArray[np.int64]] = {}
        problems: list[Problem] = []
        for split, pairs in self.in_order.items():
            total = np.zeros((len(self.truths.maps), self.num_classes), dtype=np.int64)
            bar = tqdm(pairs, desc=f"{split} labels", unit="pair", leave=False, disable=None)
            for pair in bar:
                truth, apart = examine(pair, self.truths)
                problems += apart
                for place, one in enumerate(() if truth is None else truth):
                    total[place] += np.bincount(one.ravel(), minlength=256)[: self.num_classes]
            found[split] = total
        texts = [problem.text for problem in problems if not problem.is_harmless]
        if texts:
            more = len(texts) - MOST_NAMED
            rest = f"; and {more} more" if more > 0 else ""
            raise DataError("; ".join(texts[:MOST_NAMED]) + rest)
        for what in HARMLESS:
            odd = [problem.text for problem in problems if problem.what == what]
            if odd:
                self.remarks.say(f"{len(odd)} pairs differ in {what} from date to date: {odd[0]}")
        return found

    def check(self) -> None:
        """Fail, before any training, on pairs that do not fit, or if nothing ever changes.

        Raises:
            DataError: The message says what is wrong and where.
        """
        self.check_splits()
        if self.counts["train"][0, 1] == 0 and self.limit is None:
            what = "building" if self.kind == "damage" else "change"
            raise DataError(f"root={str(self.root)!r}: no training pixel is labelled as {what}")

    def take_whole(self, split: str) -> None:
        """Use all images as one split instead of making a split, to score other data."""
        super().take_whole(split)
        self.__dict__.pop("counts", None)

    def inferred_settings(self) -> dict[str, Any]:
        """Inferred settings, so that later commands need not infer them again."""
        return {
            **super().inferred_settings(),
            "classes": self.class_names,
            "colors": None if self.truths.colors is None else [list(c) for c in self.truths.colors],
        }

    def dataset(self, split: str, *, augmented: bool = False) -> PairDataset:
        """Preprocessed pairs of a split."""
        transform = self.random_changes(PairTransform) if augmented else None
        return PairDataset(self.items(split), self.preprocessing, self.truths, transform, self.seed)

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Pairs of a split in order, as lists, because their maps have their own sizes."""
        return self._eval_loader(split, collate=list)


# fixed class names
FIXED: dict[str, list[str]] = {"binary": ["unchanged", "changed"], "damage": XBD}
