"""A folder of cases, each of which is registered to the others or to an atlas.

Layouts: `root/case.nii.gz`, or `root/{images,labels}/case.nii.gz` with labels of the same names;
    either also in `root/{train,val,test}`. Images of other formats are read as well.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.listing import check_files, list_images, subfolders
from vimamba.data.masked.mask_folder import IMAGE_FOLDERS, MASK_FOLDERS, splits_below
from vimamba.data.masked.matching import by_name
from vimamba.data.paired.cases import Case, Pair
from vimamba.data.paired.registration import DrawnPairs, ListedPairs, Pairs, RegistrationData
from vimamba.data.splits import Division
from vimamba.data.volume_files import list_volumes, stem


class CaseFolder(RegistrationData):
    """Cases in a folder; see the module for the layouts.

    Args:
        root: The folder.
        atlas: Name of a case in the folder, or a file, to which all cases are registered. Without
            it, all ordered pairs of a split are used.
        atlas_labels: Labels of an atlas that is not among the cases.
        **kwargs: Arguments of `RegistrationData`.
    """

    def __init__(
        self,
        root: str,
        *,
        atlas: str | None = None,
        atlas_labels: str | None = None,
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        if atlas_labels is not None and atlas is None:
            raise DataError(f"atlas_labels={atlas_labels!r} needs an atlas")
        self.atlas, self.atlas_labels = atlas, atlas_labels

    def read(self) -> Catalogue:
        """Find the cases."""
        if not self.root.is_dir():
            raise DataError(f"root={str(self.root)!r} is not a folder")
        parts = splits_below(self.root)
        if not parts:
            return Catalogue(self.divide(self._without_atlas(self.find(self.root))), drawn=True)
        return self.with_val(
            {split: self._without_atlas(self.find(folder)) for split, folder in parts.items()}
        )

    def draw_parts(
        self, items: Sequence[Any], groups: Sequence[str] | None, fractions: dict[str, float]
    ) -> Division:
        """Make a split by the fractions; a split with a single case would have no pair."""
        if self.atlas is None:
            least = 2 / len(items)
            fractions = {split: max(part, least * (part > 0)) for split, part in fractions.items()}
        return super().draw_parts(items, groups, fractions)

    def find(self, folder: Path) -> tuple[Case, ...]:
        """The cases of one folder.

        Raises:
            DataError: There are none, or both volumes and images, or only some cases have labels.
        """
        named = {path.name.lower(): path for path in reversed(subfolders(folder))}
        images, labels = (
            next((named[name] for name in names if name in named), None)
            for names in (IMAGE_FOLDERS, MASK_FOLDERS)
        )
        found = self._files(images or folder)
        if images is None or labels is None:
            return tuple(Case(path, self.root) for path in found.values())
        known = self._files(labels)
        if missing := [path for name, path in found.items() if name not in known]:
            raise DataError(f"{missing[0]} has no labels in {labels}")
        return tuple(Case(path, self.root, known[name]) for name, path in found.items())

    def _files(self, folder: Path) -> dict[str, Path]:
        """Volumes or images of a folder by their names."""
        volumes, images = list_volumes(folder), list_images(folder)
        if volumes and images:
            raise DataError(f"{folder} has both volumes and images, such as {images[0]}")
        if not volumes and not images:
            raise DataError(f"{folder} holds no volume (.nii, .nii.gz) and no image")
        check_files(volumes or images)
        return by_name(volumes or images, stem)

    def _without_atlas(self, cases: tuple[Case, ...]) -> tuple[Case, ...]:
        """The cases except the atlas."""
        if self.atlas is None:
            return cases
        place = self.atlas_case.path.resolve()
        return tuple(case for case in cases if case.path.resolve() != place)

    @cached_property
    def atlas_case(self) -> Case:
        """The case to which all others are registered.

        Raises:
            DataError: There is no such case or file.
        """
        assert self.atlas is not None
        folders = list(splits_below(self.root).values()) or [self.root]
        for case in (case for folder in folders for case in self.find(folder)):
            if self.atlas in (case.name, case.path.name, stem(case.path)):
                return case
        path = next((p for p in (self.root / self.atlas, Path(self.atlas)) if p.is_file()), None)
        if path is None:
            raise DataError(f"atlas={self.atlas!r} is neither a case in {self.root} nor a file")
        return Case(path, self.root, Path(self.atlas_labels) if self.atlas_labels else None)

    def training_pairs(self) -> Pairs:
        """Each case once, to the atlas or another random case of the epoch."""
        cases = self.items("train")
        if self.atlas is not None:
            return ListedPairs(self.all_pairs("train"))
        return DrawnPairs(cases, self.seed)

    def all_pairs(self, split: str) -> Sequence[Pair]:
        """Each case to the atlas, or to the next one."""
        cases = self.items(split)
        if self.atlas is not None:
            return [Pair(case, self.atlas_case) for case in cases]
        if len(cases) < 2:
            return []
        return [Pair(one, other) for one, other in pairwise((*cases, cases[0]))]

    def pairs_to_score(self, split: str) -> Sequence[Pair]:
        """A seeded choice of all ordered pairs, or of all cases to the atlas."""
        cases, wanted = self.items(split), self.scored_pairs
        count = len(cases) * (1 if self.atlas is not None else len(cases) - 1)
        chosen = np.sort(np.random.default_rng(self.seed).permutation(count)[:wanted]).tolist()
        if self.atlas is not None:
            return [Pair(cases[index], self.atlas_case) for index in chosen]
        places = (divmod(index, len(cases) - 1) for index in chosen)
        return [Pair(cases[one], cases[other + (other >= one)]) for one, other in places]
