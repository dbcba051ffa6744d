"""Lists files and folders in the same order on every system, without system files.

Names are compared in their composed form (NFC): an accent encoded as a separate character, as on
macOS, does not make a different name. Linked folders are followed unless they lead back.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from vimamba.data.errors import DataError
from vimamba.data.remarks import Remarks, some

# folders of thumbnails and trash: Synology and QNAP, archives made on macOS, Windows, Linux
STRAY_FOLDERS = (
    "@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "system volume information",
    "lost+found",
)  # fmt: skip

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm",
    ".pgm", ".pbm", ".pnm",
)  # fmt: skip

NaturalKey = tuple[list[tuple[int, int | str]], str, str]


def composed(name: str) -> str:
    """A name in the form used for comparison."""
    return unicodedata.normalize("NFC", name)


def natural_order(name: str) -> NaturalKey:
    """Sort key that puts `class 2` before `class 10`; no two names are equal to it."""
    parts = re.split(r"(\d+)", composed(name))
    key = [(0, int(part)) if part.isdecimal() else (1, part.casefold()) for part in parts if part]
    return key, composed(name), name


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Names that differ only by case or leading zeros."""
    found: dict[tuple[tuple[int, int | str], ...], list[str]] = {}
    for name in names:
        found.setdefault(tuple(natural_order(name)[0]), []).append(name)
    return [alike for alike in found.values() if len(alike) > 1]


def check_files(paths: Iterable[Path]) -> None:
    """Fail on unusable files: those of 0 bytes, and names that cannot be written to a list.

    Raises:
        DataError: The message names them.
    """
    empty = []
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            name = os.fsencode(path).decode("utf-8", "backslashreplace")
            raise DataError(f"the name of {name} is not UTF-8; rename the file or folder") from None
        if path.is_file() and path.stat().st_size == 0:
            empty.append(str(path))
    if empty:
        raise DataError(f"{len(empty)} files are empty (0 bytes): {some(empty)}")


def list_folder(folder: Path, remarks: Remarks | None = None) -> tuple[list[Path], list[Path]]:
    """Folders and files of a folder in natural order, without hidden and stray ones.

    Args:
        folder: Folder to search.
        remarks: Receives what is skipped.

    Raises:
        DataError: The folder cannot be read.
    """
    remarks = remarks or Remarks()
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: natural_order(entry.name))
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from None
    folders, files = [], []
    for entry in entries:
        path = folder / entry.name
        shown = path.relative_to(folder.parent)
        if entry.name.lower() in STRAY_FOLDERS and entry.is_dir():
            remarks.leave_out(f"{entry.name} folder", shown)
        elif entry.name.startswith("."):
            remarks.leave_out("hidden folder" if entry.is_dir() else "hidden file", shown)
        elif entry.is_dir():
            folders.append(path)
        elif entry.is_file():
            files.append(path)
        else:
            remarks.leave_out("broken link" if entry.is_symlink() else "special file", shown)
    return folders, files


def subfolders(folder: Path, remarks: Remarks | None = None) -> list[Path]:
    """Folders of a folder in natural order, without hidden and stray ones.

    Args:
        folder: Folder to search.
        remarks: Receives what is skipped, including the files.
    """
    folders, files = list_folder(folder, remarks)
    if remarks is not None:
        for path in files:
            remarks.leave_out(path.suffix.lower() or "file", path.relative_to(folder.parent))
    return folders


def list_files(
    folder: Path, endings: tuple[str, ...], remarks: Remarks | None = None
) -> list[Path]:
    """Files below a folder, at any depth, in natural order.

    Args:
        folder: Where to look; linked folders are followed.
        endings: Allowed suffixes, in lower case.
        remarks: Receives what is skipped.

    Raises:
        DataError: A folder cannot be read.
    """
    found = []
    for path in walk(folder, remarks):
        if path.name.lower().endswith(endings):
            found.append(path)
        elif remarks is not None:
            remarks.leave_out(path.suffix.lower() or "file", path.relative_to(folder.parent))
    return sorted(found, key=lambda path: natural_order(path.relative_to(folder).as_posix()))


def list_images(folder: Path, remarks: Remarks | None = None) -> list[Path]:
    """Image files below a folder, at any depth, in natural order.

    Args:
        folder: Where to look; linked folders are followed.
        remarks: Receives what is skipped: hidden files, thumbnails, other kinds of files.

    Raises:
        DataError: A folder cannot be read.
    """
    return list_files(folder, IMAGE_SUFFIXES, remarks)


def walk(folder: Path, remarks: Remarks | None = None) -> Iterator[Path]:
    """Files at any depth; no folder is entered twice, nor is one that contains `folder`."""
    entered = {_identity(parent) for parent in folder.resolve().parents}
    below, linked = [folder], []
    while below or linked:
        here = below.pop() if below else linked.pop(0)  # links last: actual folders come first
        if _identity(here) in entered:
            (remarks or Remarks()).leave_out("linked folder", here.relative_to(folder.parent))
            continue
        entered.add(_identity(here))
        folders, files = list_folder(here, remarks)
        for path in folders:
            (linked if path.is_symlink() else below).append(path)
        yield from files


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def stamp(path: Path) -> tuple[int, int]:
    """Identifies a file's current content; (0, 0) if it does not exist."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


def find_file(path: Path) -> Path | None:
    """The file with that name, however its accents are encoded; None if there is none."""
    for form in (None, "NFC", "NFD"):
        tried = Path(unicodedata.normalize(form, str(path))) if form else path
        try:
            if tried.is_file():
                return tried
        except (OSError, ValueError):  # an invalid file name
            return None
    return None


def check_distinct(names: Iterable[str], source: object) -> None:
    """Fail on names that differ only in the encoding of their accents.

    Raises:
        DataError: The message names one of them.
    """
    seen: dict[str, str] = {}
    for name in names:
        if seen.setdefault(composed(name), name) != name:
            raise DataError(
                f"{source}: {name!r} occurs twice, with its accents encoded in two ways"
            )
