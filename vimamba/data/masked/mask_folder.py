"""Folders of images and masks, one mask per image with the same name.

Three layouts: `root/{images,masks}`, `root/{train,val,test}/{images,masks}` and
`root/{images,masks}/{train,val,test}`. If there are no splits, or there is train but no val, a
seeded split is made. Test images without any mask are skipped: they are for prediction.
"""

from pathlib import Path

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.listing import list_images, subfolders
from vimamba.data.masked.items import MaskedImage
from vimamba.data.masked.matching import match_files
from vimamba.data.masked.segmentation import SegmentationData
from vimamba.data.remarks import Remarks
from vimamba.data.splits import split_folders

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "images_png", "jpegimages")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "segmentations", "masks_png", "gt",
    "ground_truth", "ground truth", "segmentationclass",
)  # fmt: skip


class MaskFolder(SegmentationData):
    """Folders of images and masks; see the module for the layouts.

    Args:
        root: The folder.
        images: Name of the folders with images; images, img and similar by default.
        masks: Name of the folders with masks; masks, labels, annotations and similar by default.
        mask_suffix: Suffix of a mask's name after the image's, such as "_mask".
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

    def read(self) -> Catalogue:
        """Find the folders and pair their files."""
        if not self.root.is_dir():
            raise DataError(f"root={str(self.root)!r} is not a folder")
        images, masks = self._find(self.root)
        if images is not None and masks is not None:
            for path in subfolders(self.root, self.remarks):
                if path not in (images, masks):
                    self.remarks.leave_out("folder", path.relative_to(self.root.parent))
            image_parts, mask_parts = splits_below(images), splits_below(masks)
            if not image_parts:
                return Catalogue(self.divide(self.pair(images, masks)), drawn=True)
            parts = {split: (path, mask_parts.get(split)) for split, path in image_parts.items()}
        else:
            parts = {}
            for split, folder in splits_below(self.root).items():
                images, masks = self._find(folder)
                if images is None:
                    raise DataError(f"{folder} lacks {self._wanted()}")
                parts[split] = (images, masks)
            if not parts:
                raise DataError(
                    f"root={str(self.root)!r} has neither {self._wanted()} nor folders train, "
                    "val, test"
                )
        splits: dict[str, tuple[MaskedImage, ...]] = {}
        for split, (images, masks) in parts.items():
            found = self.find_masks(split, images, masks)
            if found is not None:
                splits[split] = self.pair(images, found)
        return self.with_val(splits)

    def find_masks(self, split: str, images: Path, masks: Path | None) -> Path | None:
        """The folder of the masks, if it exists; only test images may have none.

        Raises:
            DataError: Images of another split have no masks.
        """
        if masks is not None and self.list_files(masks):
            return masks
        if split != "test":
            wanted = masks or f"a folder {self.mask_folders[0]}"
            raise DataError(f"there are no masks for the images in {images}; expected in {wanted}")
        count = len(self.list_files(images))
        self.remarks.say(f"{images}: {count} images without masks, not scored; see `predict`")
        return None

    def _wanted(self) -> str:
        return f"a folder {self.image_folders[0]} and a folder {self.mask_folders[0]}"

    def _find(self, folder: Path) -> tuple[Path | None, Path | None]:
        """The folders of images and of masks in a folder, if they exist."""
        named = {path.name.lower(): path for path in reversed(subfolders(folder))}
        images, masks = (
            next((named[name] for name in names if name in named), None)
            for names in (self.image_folders, self.mask_folders)
        )
        return images, masks

    def list_files(self, folder: Path, remarks: Remarks | None = None) -> list[Path]:
        """Images or masks of a folder."""
        return list_images(folder, remarks)

    def pair(self, images: Path, masks: Path) -> tuple[MaskedImage, ...]:
        """Images of a folder with their masks."""
        found = self.list_files(images, self.remarks)
        if not found:
            raise DataError(f"folder {images} holds no image")
        return match_files(
            found,
            self.list_files(masks, self.remarks),
            image_root=images,
            mask_root=masks,
            root=self.root,
            mask_suffix=self.mask_suffix,
            align=self.align,
        )


def splits_below(folder: Path) -> dict[str, Path]:
    """Folders named after splits, if there are no others."""
    folders = subfolders(folder)
    named = split_folders(folders)
    return named if len(named) == len(folders) else {}
