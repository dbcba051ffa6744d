"""Base class of all data sets: splits, loaders and progress for resuming."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from vimamba.data.band_sample import BandSample, sample_bands
from vimamba.data.errors import DataError
from vimamba.data.folds import check_fold, find_groups, split_fold
from vimamba.data.items import Catalogue, Item, take
from vimamba.data.loading import (
    EpochSampler,
    ShardedBatches,
    SizedDataset,
    count_cores,
    start_worker,
)
from vimamba.data.preprocessing import (
    DEFAULT_INTENSITY,
    Intensity,
    Preprocessing,
    check_channels,
)
from vimamba.data.remarks import Remarks
from vimamba.data.splits import (
    SPLITS,
    Division,
    check_groups,
    read_split,
    split_by_group,
    split_stratified,
)
from vimamba.data.twins import describe_twins
from vimamba.lightning import LightningDataModule

Settings = TypeVar("Settings")
T = TypeVar("T", bound=Item)


class ImageData(LightningDataModule):
    r"""Base of all data sets: a kind of data defines its preprocessing (`plan`) and `dataset`.

    A data set then only has to `read`: to find its items, whatever their storage format.

    Args:
        root: Folder or file with the data.
        in_chans: Channels: 3 for RGB, 1 for gray, or as many as the files have bands. By default as
            many as `bands` lists, or else as the first image has; gray is repeated to 3.
        bands: Indices of the channels in files with many bands, from 0.
        intensity: How stored values become numbers in [0, 1].
        mean: Per-channel mean in [0, 1]. By default ImageNet's for three 8-bit channels; otherwise
            that of a sample of the training images.
        std: Per-channel standard deviation in [0, 1]; same default.
        batch_size: Images per step, of each process if there are several.
        workers: Processes that load images; 0 loads in the main process. 2 by default, or 1 on a
            single core.
        val_fraction: Fraction of the training images to hold out if there is no val split.
        test_fraction: Fraction to hold out for the test if nothing is split yet.
        split_csv: Take the split from this file (as a run writes it) instead of making one.
        limit: Use at most this many images of each split.
        group_pattern: Regular expression for the part of a name that identifies images that belong
            together, such as "(patient\d+)"; they are then never in two splits.
        fold: Which of `folds` equal parts is held out, from 0; parts are made from all images
            outside a given test split.
        folds: Number of parts.
        fold_as: What the held-out part becomes: "val", which then chooses the best epoch, or
            "test", with a val split made from the rest; a given test split is not used.
        seed: Seed of all random streams.
    """

    # unit in which the splits of a fold are counted
    unit: ClassVar[str] = "images"
    img_size: int | tuple[int, ...]
    # arguments saved with a run as inferred from the data, needed by later commands
    settles: ClassVar[tuple[str, ...]] = ("img_size", "in_chans", "mean", "std")

    def __init__(
        self,
        root: str,
        *,
        in_chans: int | None = None,
        bands: list[int] | None = None,
        intensity: Intensity = DEFAULT_INTENSITY,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_csv: str | None = None,
        limit: int | None = None,
        group_pattern: str | None = None,
        fold: int | None = None,
        folds: int = 5,
        fold_as: Literal["val", "test"] = "val",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.given_chans = in_chans
        self.bands = bands
        self.intensity = restore_settings(Intensity, intensity)
        self.given_mean, self.given_std = mean, std
        self.batch_size = batch_size
        self.workers = min(2, count_cores()) if workers is None else workers
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.split_csv = Path(split_csv) if split_csv else None
        self.limit = limit
        self.group_pattern = group_pattern
        self.fold, self.folds, self.fold_as = fold, folds, fold_as
        self.seed = seed
        self.first_epoch = 0
        self.whole: str | None = None
        self.remarks = Remarks()
        check_positive(batch_size=batch_size, limit=limit, in_chans=in_chans)
        if self.workers < 0:
            raise DataError(f"workers={workers} must be at least 0")
        check_fold(fold, folds)
        if in_chans is not None:
            self._check_given(in_chans)
        # as plain values, so that loading them from a checkpoint runs no code
        self.save_hyperparameters(logger=False)
        for name, value in self.hparams.items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                self.hparams[name] = dataclasses.asdict(value)

    @abstractmethod
    def read(self) -> Catalogue:
        """Find the items, without opening them."""

    @abstractmethod
    def plan(self) -> Preprocessing:
        """The preprocessing as far as the arguments define it."""

    @abstractmethod
    def dataset(self, split: str, *, augmented: bool = False) -> SizedDataset:
        """Preprocessed images of a split."""

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the labels; empty if there are no classes."""
        return list(self.catalogue.class_names)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def inferred_settings(self) -> dict[str, Any]:
        """Settings inferred from the data, by dotted names, saved with the run."""
        found: dict[str, Any] = {"in_chans": self.in_chans, "mean": self.mean, "std": self.std}
        if self.intensity.is_open:
            found["intensity.ranges"] = [list(ends) for ends in self.band_sample.ranges or ()]
        return found

    @cached_property
    def in_chans(self) -> int:
        """Channels of the network's input.

        Raises:
            DataError: It depends on an image that cannot be read; the message names it.
        """
        if self.given_chans is not None:
            return self.given_chans
        if self.bands is not None:
            return len(self.bands)
        items = self.sampled_items()
        if not items:
            return 3
        first = items[0].images()[0]
        head = first.head()
        have = first.image().shape[-1] if head is None else head.bands
        return 3 if have == 1 else have

    def sampled_items(self) -> Sequence[Item]:
        """Items for estimating what the arguments leave open: training items, if there are any."""
        splits = self.catalogue.splits
        return next((splits[split] for split in SPLITS if split in splits), ())

    @cached_property
    def planned(self) -> Preprocessing:
        """See `plan`."""
        self._check_given(self.in_chans)
        return self.plan()

    def _check_given(self, in_chans: int) -> None:
        """Fail on per-channel settings of the wrong length."""
        check_channels(in_chans, self.bands, self.intensity)
        for name, value in (("mean", self.given_mean), ("std", self.given_std)):
            if value is not None and len(value) != in_chans:
                raise DataError(f"{name}={value} needs {in_chans} values")

    def take_published(self, mean: Sequence[float], std: Sequence[float], crop_pct: float) -> None:
        """Normalize as published weights expect it, if the data has the same channels.

        Args:
            mean: Per channel; a `mean` given to the data set takes precedence.
            std: Per channel; likewise.
            crop_pct: Fraction of an image that evaluation keeps, if the data set has this setting.
        """
        if len(mean) != self.in_chans:
            return
        self.given_mean, self.given_std = self.given_mean or list(mean), self.given_std or list(std)
        self.hparams.update(mean=self.given_mean, std=self.given_std)
        for name in ("planned", "preprocessing"):
            self.__dict__.pop(name, None)

    @cached_property
    def band_sample(self) -> BandSample:
        """Statistics of the bands in a sample of the training images.

        Raises:
            DataError: An image cannot be read; the message names it.
        """
        return sample_bands(self.sampled_items(), self.planned)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """From stored pixels to the network's input."""
        planned = self.planned
        if not planned.is_complete:
            found = self.band_sample
            ranges = found.ranges if planned.intensity.is_open else None
            planned = planned.completed(ranges, found.mean, found.std)
        return planned

    @property
    def mean(self) -> list[float]:
        """Per-channel mean, in [0, 1]."""
        return list(self.preprocessing.mean or ())

    @property
    def std(self) -> list[float]:
        """Per-channel standard deviation, in [0, 1]."""
        return list(self.preprocessing.std or ())

    @cached_property
    def catalogue(self) -> Catalogue:
        """The data set, read once and cut down to `limit`."""
        self.remarks = Remarks()
        found = self.read()
        splits = {name: items for name, items in found.splits.items() if items}
        if self.limit is not None:
            splits = {name: self._cut(items, self.limit) for name, items in splits.items()}
        return dataclasses.replace(found, splits=splits)

    def prepare_data(self) -> None:
        """Find the images before anything is built, so that errors come first."""
        self.catalogue  # noqa: B018

    def notes(self) -> list[str]:
        """Lines on what `read` skipped and on oddities of the data."""
        splits = self.catalogue.splits  # read before the remarks are complete
        folder = self.root if self.root.is_dir() else self.root.parent
        return [*self.remarks.lines(), *describe_twins(splits, folder)]

    def tallies(self) -> dict[str, dict[str, int]]:
        """Numbers of groups, volumes, patients in each split."""
        groups = {split: self.groups_of(items) for split, items in self.catalogue.splits.items()}
        if all(found is None for found in groups.values()):
            return {}
        return {"groups": {split: len(set(found or ())) for split, found in groups.items()}}

    def _cut(self, items: Sequence[Item], limit: int) -> tuple[Item, ...]:
        """A seeded choice of at most `limit` images."""
        order = np.random.default_rng(self.seed).permutation(len(items))
        return take(items, np.sort(order[:limit]))

    def items(self, split: str) -> tuple[Any, ...]:
        """Items of a split that must exist."""
        if split not in self.catalogue.splits:
            have = sorted(self.catalogue.splits)
            raise DataError(f"root={str(self.root)!r} has no {split} split, only {have}")
        return self.catalogue.splits[split]

    def check_splits(self) -> None:
        """Fail unless there are images to train on and to choose the best epoch by.

        The latter are not needed with val_fraction=0 or a user-defined split.
        """
        wanted = ["train"]
        if self.fractions["val"] > 0 and self.split_csv is None:
            wanted.append("val")
        for split in wanted:
            if split not in self.catalogue.splits:
                raise DataError(
                    f"root={str(self.root)!r}: there are no images in the {split} split"
                )

    def check_division(self) -> None:
        """Fail on a fold that cannot be trained or scored, without reading all of its images.

        Raises:
            DataError: The message says what is missing and where.
        """
        self.check_splits()

    def count_units(self, split: str) -> int:
        """Number of units (see `unit`) in a split."""
        return len(self.items(split))

    def take_whole(self, split: str) -> None:
        """Use all images as one split instead of making a split, to score other data."""
        self.whole = split
        self.__dict__.pop("catalogue", None)

    def take_fold(self, fold: int) -> None:
        """Switch to another fold of the same cross-validation."""
        self.fold = fold
        self.__dict__.pop("catalogue", None)

    def divide(
        self,
        items: tuple[T, ...],
        *,
        val_only: bool = False,
    ) -> dict[str, tuple[T, ...]]:
        """Split images that come without splits; groups stay together.

        Args:
            items: All images.
            val_only: A test split already exists.
        """
        if self.whole:
            return {} if val_only else {self.whole: items}
        groups = self.groups_of(items)
        if self.split_csv:
            division: Division = read_split(self.split_csv, items, self.remarks)
            if groups is not None:
                check_groups(division, groups)
        else:
            fractions = {"val": self.fractions["val"]} if val_only else self.fractions
            division = self.draw(items, groups, fractions)
        return {name: take(items, indices) for name, indices in division.items()}

    def draw(
        self, items: Sequence[Any], groups: Sequence[str] | None, fractions: dict[str, float]
    ) -> Division:
        """Make a fold, or a split by the fractions, from the seed."""
        if self.fold is None:
            return self.draw_parts(items, groups, fractions)
        apart = self.draw_fold(items, groups, self.fold)
        if self.fold_as == "val":
            return apart
        rest = apart["train"]
        inner = self.draw_parts(
            take(items, rest),
            None if groups is None else [groups[int(i)] for i in rest],
            {"val": self.fractions["val"]},
        )
        return {**{split: rest[at] for split, at in inner.items()}, "test": apart["val"]}

    def draw_fold(self, items: Sequence[Any], groups: Sequence[str] | None, fold: int) -> Division:
        """Make a fold: "train" and the held-out "val"."""
        return split_fold(self.strata(items), groups, fold, self.folds, self.seed)

    def draw_parts(
        self, items: Sequence[Any], groups: Sequence[str] | None, fractions: dict[str, float]
    ) -> Division:
        """Make a split by the fractions."""
        labels = self.strata(items)
        if groups is None:
            return split_stratified(labels, fractions, self.seed)
        return split_by_group(labels, groups, fractions, self.seed)

    def groups_of(self, items: Sequence[Item]) -> list[str] | None:
        """Group of each image: by `group_pattern` in its name, or as given by the data.

        None if each image is its own group.
        """
        if self.group_pattern is not None:
            return find_groups(self.group_pattern, (item.name for item in items))
        if not any(item.group for item in items):
            return None
        return [item.group or item.name for item in items]

    @property
    def draws_fold(self) -> bool:
        """Whether a fold is made from a data set that comes with splits."""
        return self.fold is not None and self.whole is None

    def pool_for_fold(self, splits: dict[str, tuple[T, ...]]) -> dict[str, tuple[T, ...]]:
        """Merge val images into the training images if a fold is made from both."""
        if not (self.draws_fold and {"train", "val"} <= splits.keys()):
            return splits
        rest = {split: items for split, items in splits.items() if split != "val"}
        return {**rest, "train": splits["train"] + splits["val"]}

    def hold_out(self, splits: dict[str, tuple[T, ...]]) -> dict[str, tuple[T, ...]]:
        """Make a val split or a fold from the training images; a given test split is kept.

        With `split_csv` all images are split again.
        """
        if self.split_csv is not None:
            return self.divide(tuple(chain.from_iterable(splits.values())))
        return {**splits, **self.divide(splits["train"], val_only=True)}

    def with_val(self, splits: dict[str, tuple[T, ...]]) -> Catalogue:
        """Given splits, with a val split or a fold made if needed; see `hold_out`.

        Raises:
            DataError: Images that belong together are in two of the given splits.
        """
        splits = self.pool_for_fold(splits)
        if self.split_csv is None:
            groups = {
                split: self.groups_of(items) or [item.name for item in items]
                for split, items in splits.items()
            }
            flat = [group for part in groups.values() for group in part]
            ends = np.cumsum([0, *(len(part) for part in groups.values())])
            places = {split: np.arange(*ends[i : i + 2]) for i, split in enumerate(groups)}
            check_groups(places, flat)
            if "val" in splits or "train" not in splits:
                return Catalogue(splits, drawn=False)
        return Catalogue(self.hold_out(splits), drawn=True)

    def strata(self, items: Sequence[Any]) -> NDArray:
        """Labels to stratify by; the same for all images unless overridden."""
        return np.zeros(len(items), dtype=np.int64)

    @property
    def shard(self) -> dict[str, int]:
        """This process's rank and the number of processes."""
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _loader(
        self,
        dataset: SizedDataset,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        **batches: Any,
    ) -> DataLoader[Any]:
        """A loader with batches defined by `batches`, arguments of torch's `DataLoader`."""
        return DataLoader(
            cast(Any, dataset),
            num_workers=self.workers,
            worker_init_fn=start_worker,
            collate_fn=collate,
            pin_memory=self.trainer is not None
            and self.trainer.num_devices > 0
            and torch.cuda.is_available(),
            **batches,
        )

    def state_dict(self) -> dict[str, int]:
        """Finished epochs, for the checkpoint."""
        if self.trainer is None:
            return {"epochs": self.first_epoch}
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return {"epochs": progress.processed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start with the next epoch: workers load its images before Lightning sets it."""
        self.first_epoch = state_dict["epochs"]

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented training images in a new order every epoch."""
        dataset = self.dataset("train", augmented=True)
        sampler = EpochSampler(len(dataset), self.seed, epoch=self.first_epoch, **self.shard)
        return self._loader(
            dataset,
            sampler=sampler,
            batch_size=self.batch_size,
            drop_last=len(sampler) >= self.batch_size,
            persistent_workers=self.workers > 0,
        )

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """This process's share of a split, in order."""
        return self._eval_loader(split)

    def _eval_loader(
        self, split: str, *, whole: bool = False, collate: Callable[[list[Any]], Any] | None = None
    ) -> DataLoader[Any]:
        """Images of a split in order: each process gets its share, or all with `whole`."""
        dataset, shard = self.dataset(split), self.shard
        if whole or shard["world_size"] == 1:
            return self._loader(dataset, collate=collate, batch_size=self.batch_size)
        batches = ShardedBatches(len(dataset), self.batch_size, **shard)
        return self._loader(dataset, collate=collate, batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Validation images in order; no loader if there are none."""
        return self.eval_dataloader("val") if "val" in self.catalogue.splits else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test images in order."""
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images to predict, in order, from the first existing split of test, val and train.

        Batches are those of evaluation, including labels or masks; each of several processes gets a
        share.
        """
        split = next(name for name in ("test", "val", "train") if name in self.catalogue.splits)
        return self.eval_dataloader(split)


def restore_settings(kind: type[Settings], value: Settings | dict[str, Any]) -> Settings:
    """Return settings as given, or build them from the plain values of a checkpoint."""
    return kind(**value) if isinstance(value, dict) else value


def check_positive(**values: int | None) -> None:
    """Fail on a number below 1, naming it."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise DataError(f"{name}={value} must be at least 1")
