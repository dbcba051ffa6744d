"""Finds the mask of each image by its name, never by its position in a list."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from vimamba.data.errors import DataError
from vimamba.data.listing import check_files, composed
from vimamba.data.masked.items import MaskedFile
from vimamba.data.remarks import some


def match_files(
    images: Sequence[Path],
    masks: Sequence[Path],
    *,
    image_root: Path,
    mask_root: Path,
    root: Path,
    mask_suffix: str = "",
    align: bool = False,
) -> tuple[MaskedFile, ...]:
    """Images with the masks of the same name, ignoring suffixes.

    Args:
        images: Image files.
        masks: Mask files.
        image_root: Folder relative to which an image's path is its name.
        mask_root: The same for masks.
        root: Folder that names in errors and tables are relative to.
        mask_suffix: Suffix of a mask's name after the image's.
        align: As in `MaskedFile`.

    Raises:
        DataError: A file has no partner or is empty, or two have the same name; the message lists
            them.
    """
    named_images = by_stem(images, image_root)
    named_masks = by_stem(masks, mask_root, mask_suffix)
    match_names(named_images, named_masks, image_root, mask_root)
    check_files([*images, *masks])
    return tuple(
        MaskedFile(path, root, named_masks[stem], align=align)
        for stem, path in named_images.items()
    )


def match_names(
    images: Mapping[str, object], masks: Mapping[str, object], image_root: Path, mask_root: Path
) -> None:
    """Fail unless both have the same names."""
    troubles = [
        f"{what} in {folder} without {partner}: {some(names)}"
        for what, folder, partner, names in (
            ("images", image_root, f"a mask in {mask_root}", images.keys() - masks.keys()),
            ("masks", mask_root, f"an image in {image_root}", masks.keys() - images.keys()),
        )
        if names
    ]
    if troubles:
        raise DataError("; ".join(troubles))


def by_stem(paths: Iterable[Path], folder: Path, suffix: str = "") -> dict[str, Path]:
    """Files by their path in a folder, without extension and suffix."""

    def name(path: Path) -> str:
        found = composed(path.relative_to(folder).with_suffix("").as_posix())
        if not found.endswith(composed(suffix)):
            raise DataError(f"mask {path} does not end in mask_suffix={suffix!r}")
        return found.removesuffix(composed(suffix))

    return by_name(paths, name)


def by_name(paths: Iterable[Path], name: Callable[[Path], str]) -> dict[str, Path]:
    """Files by a name, in its composed form.

    Raises:
        DataError: Two have the same name; the message names them.
    """
    found: dict[str, Path] = {}
    for path in paths:
        key = composed(name(path))
        if key in found:
            raise DataError(f"{found[key]} and {path} have the same name")
        found[key] = path
    return found
