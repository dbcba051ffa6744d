"""Folders of images and masks, one mask per image and under the same name.

Three layouts: `root/{images,masks}`, `root/{train,val,test}/{images,masks}` and
`root/{images,masks}/{train,val,test}`. Where there are no splits, and where train has no val beside
it, a seeded division is drawn.
"""

from pathlib import Path

from vimamba.data.errors import DataError
from vimamba.data.image_folder import subfolders
from vimamba.data.masked import FilePair, MaskedCatalogue, MaskedSamples
from vimamba.data.pairs import pair_files
from vimamba.data.samples import list_images
from vimamba.data.segmentation import SegmentationData, as_samples
from vimamba.data.splits import SPLIT_WORDS

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "images_png", "jpegimages")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "segmentations", "masks_png", "gt",
    "ground_truth", "ground truth", "segmentationclass",
)  # fmt: skip


class MaskFolder(SegmentationData):
    """Folders of images and masks; see the module for the layouts.

    Args:
        root: The folder.
        images: Name of the folders with images; images, img and the like by default.
        masks: Name of the folders with masks; masks, labels, annotations and the like by default.
        mask_suffix: What a mask's name has at its end beyond the image's, such as "_mask".
        **kwargs: Arguments of `SegmentationData`.
    """

    def __init__(
        self,
        root: str,
        *,
        images: str | None = None,
        masks: str | None = None,
        mask_suffix: str = "",
        **kwargs,  # noqa: ANN003
    ) -> None:
        super().__init__(root, **kwargs)
        self.image_folders = IMAGE_FOLDERS if images is None else (images.lower(),)
        self.mask_folders = MASK_FOLDERS if masks is None else (masks.lower(),)
        self.mask_suffix = mask_suffix

    def read(self) -> MaskedCatalogue:
        """Find the folders and pair their files."""
        if not self.root.is_dir():
            raise DataError(f"root={str(self.root)!r} is not a folder")
        folders = self._find(self.root)
        if folders is not None:
            images, masks = (splits_below(folder) for folder in folders)
            if not images:
                samples = as_samples(self.pair(*folders))
                return MaskedCatalogue(self.divide(samples), drawn=True)
            if lacking := sorted(images.keys() - masks.keys()):
                raise DataError(f"{folders[1]} has no masks for {lacking}")
            given = {split: (images[split], masks[split]) for split in images}
        else:
            given = {}
            for split, folder in splits_below(self.root).items():
                found = self._find(folder)
                if found is None:
                    raise DataError(f"{folder} lacks {self._wanted()}")
                given[split] = found
        if not given:
            raise DataError(
                f"root={str(self.root)!r} has neither {self._wanted()} nor folders train, val, test"
            )
        return self.with_val({split: as_samples(self.pair(*pair)) for split, pair in given.items()})

    def with_val(self, splits: dict[str, MaskedSamples]) -> MaskedCatalogue:
        """Draw a val split from the training images where none is given, or a fold."""
        splits = self.pool_for_fold(splits)
        if "val" in splits or "train" not in splits:
            return MaskedCatalogue(splits, drawn=False)
        return MaskedCatalogue(self.hold_out(splits), drawn=True)

    def _wanted(self) -> str:
        return f"a folder {self.image_folders[0]} and a folder {self.mask_folders[0]}"

    def _find(self, folder: Path) -> tuple[Path, Path] | None:
        """The folders of images and of masks in a folder, if both are there."""
        named = {path.name.lower(): path for path in subfolders(folder)}
        images = [named[name] for name in self.image_folders if name in named]
        masks = [named[name] for name in self.mask_folders if name in named]
        return (images[0], masks[0]) if images and masks else None

    def pair(self, images: Path, masks: Path) -> list[FilePair]:
        """Images of a folder with their masks."""
        found = list_images(images)
        if not found:
            raise DataError(f"folder {images} holds no image")
        return pair_files(
            found,
            list_images(masks),
            image_root=images,
            mask_root=masks,
            root=self.root,
            mask_suffix=self.mask_suffix,
        )


def splits_below(folder: Path) -> dict[str, Path]:
    """Folders that are named as splits, if there are no others."""
    folders = subfolders(folder)
    named = {SPLIT_WORDS.get(path.name.lower()): path for path in folders}
    return {} if None in named else {str(split): path for split, path in named.items()}
