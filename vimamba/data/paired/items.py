"""Two images of one place and the files of their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vimamba.data.items import FileImage, relative_name


@dataclass(frozen=True, eq=False)
class DatePair:
    """Two images of one place.

    Attributes:
        stem: Common part of the names of its files.
        files: "before", "after" and labels; see `vimamba.data.paired.layouts.Layout`.
        root: Folder that names are relative to.
        notes: A file with additional label information.
        group: As in `vimamba.data.items.Item`.
    """

    stem: str
    files: Mapping[str, Path]
    root: Path
    notes: Path | None = None
    group: str = ""

    @property
    def name(self) -> str:
        """Path of the first image relative to the root."""
        return relative_name(self.files["before"], self.root)

    def images(self) -> tuple[FileImage, FileImage]:
        """Before and after."""
        return FileImage(self.files["before"], self.root), FileImage(self.files["after"], self.root)

    @property
    def label_files(self) -> dict[str, Path]:
        """The label files by kind."""
        return {role: path for role, path in self.files.items() if role not in ("before", "after")}

    def target_text(self, class_names: Sequence[str]) -> str:
        """Names of the labels."""
        return " ".join(relative_name(path, self.root) for path in self.label_files.values())
