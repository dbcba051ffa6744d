"""Skin lesions of the ISIC challenges 2017 and 2018 (segmentation), as downloaded or rearranged.

As downloaded: folders such as `ISIC-2017_Training_Data` of `ISIC_0000000.jpg` and
`ISIC-2017_Training_Part1_GroundTruth` of `ISIC_0000000_segmentation.png`. Rearranged, as VM-UNet
and others use them: `{train,val}/{images,masks}`, with or without `_segmentation` in the masks'
names.
"""

from pathlib import Path

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.listing import list_images, subfolders
from vimamba.data.masked.items import MaskedFile
from vimamba.data.masked.mask_folder import MaskFolder
from vimamba.data.masked.matching import match_files

SUFFIX = "_segmentation"
SPLIT_OF_PART = {"training": "train", "validation": "val", "test": "test"}


class ISIC(MaskFolder):
    """ISIC 2017 or 2018, task 1; see the module for the layouts.

    Args:
        root: The folder with the unpacked archives, or with train and val.
        **kwargs: Arguments of `SegmentationData`.
    """

    def __init__(self, root: str, **kwargs) -> None:  # noqa: ANN003
        super().__init__(root, **kwargs)

    def read(self) -> Catalogue:
        """Find the archives' folders, or those of the splits."""
        if not self.root.is_dir():
            raise DataError(f"root={str(self.root)!r} is not a folder")
        folders = [path for path in subfolders(self.root) if path.name.lower().startswith("isic")]
        truths = [path for path in folders if "groundtruth" in path.name.lower()]
        if not truths:
            return super().read()
        splits = {}
        for truth in truths:
            split = split_of(truth)
            images = [p for p in folders if p not in truths and split_of(p) == split]
            if len(images) != 1:
                raise DataError(f"{self.root} has {len(images)} folders of images for {truth.name}")
            splits[split] = self.pair(images[0], truth)
        if "test" not in splits:
            for path in folders:
                if path not in truths and split_of(path) == "test":
                    self.find_masks("test", path, None)
        return self.with_val(splits)

    def pair(self, images: Path, masks: Path) -> tuple[MaskedFile, ...]:
        """Images with their masks; the superpixels in some archives are skipped."""
        mask_files = list_images(masks, self.remarks)
        named = all(path.stem.endswith(SUFFIX) for path in mask_files)
        return match_files(
            [p for p in list_images(images, self.remarks) if not p.stem.endswith("_superpixels")],
            mask_files,
            image_root=images,
            mask_root=masks,
            root=self.root,
            mask_suffix=SUFFIX if named else "",
            align=self.align,
        )


def split_of(folder: Path) -> str:
    """The split in an archive's name."""
    for word, split in SPLIT_OF_PART.items():
        if word in folder.name.lower():
            return split
    raise DataError(f"{folder} is not a training, validation or test part")
