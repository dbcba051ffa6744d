"""The pairs given on a command line, and the names of their maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vimamba.data.listing import list_images
from vimamba.data.masked.matching import by_stem
from vimamba.data.paired.items import DatePair
from vimamba.data.paired.layouts import check_match
from vimamba.errors import UsageError
from vimamba.tasks.outputs import output_name, shown
from vimamba.tasks.segmentation.jobs import Job


@dataclass(frozen=True)
class PairJob(Job):
    """Two images of one place; `paths` are before and after.

    Attributes:
        maps: Names of the maps to write; a single one is named after the pair only.
    """

    maps: tuple[str, ...] = ()

    def map_files(self, out: Path) -> list[Path]:
        """Paths of its maps."""
        if len(self.maps) == 1:
            return [out / f"{self.name}{self.ending}"]
        return [out / f"{self.name}_{name}{self.ending}" for name in self.maps]

    def mask_file(self, out: Path) -> Path:
        """The map that is written last: if it exists, all do."""
        return self.map_files(out)[-1]

    @property
    def pair(self) -> DatePair:
        """The pair as the data modules read it."""
        before, after = self.paths
        return DatePair(self.name, {"before": before, "after": after}, before.parent)


def find_pair_jobs(inputs: Sequence[Path], maps: tuple[str, ...]) -> list[PairJob]:
    """The pairs given on a command line.

    Args:
        inputs: Before and after: two images, or two folders whose files match by name.
        maps: Names of the maps to write.

    Raises:
        UsageError: There are not two, or one is a file and the other a folder.
        DataError: Files do not match; the message names them.
    """
    if len(inputs) != 2:
        raise UsageError(
            f"a change run compares two images or folders, BEFORE AFTER; got {len(inputs)}"
        )
    for path in inputs:
        if not path.exists():
            raise UsageError(f"{shown(path)} is neither a file nor a folder")
    before, after = inputs
    if before.is_dir() != after.is_dir():
        raise UsageError(f"{shown(before)} and {shown(after)} must be two files or two folders")
    if before.resolve() == after.resolve():
        raise UsageError(f"{shown(before)} is named as both dates")
    ending = f"_{max(maps, key=len)}.png"
    if before.is_file():
        return [PairJob((before, after), output_name(before.stem, ending), maps)]
    first, second = (by_stem(list_images(path), path) for path in inputs)
    if not first and not second:
        raise UsageError(f"folder {shown(before)} holds no image")
    check_match({"before": first, "after": second}, {"before": before, "after": after})
    return [
        PairJob((path, second[stem]), output_name(stem, ending), maps)
        for stem, path in first.items()
    ]
