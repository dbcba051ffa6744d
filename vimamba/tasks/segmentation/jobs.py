"""The images and volumes given on a command line, and the names of their masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vimamba.console import say
from vimamba.data.dicom import list_series, series_of
from vimamba.data.errors import DataError
from vimamba.data.geometry import raster_grid
from vimamba.data.listing import IMAGE_SUFFIXES, find_file, list_files, list_images
from vimamba.data.lists import LIST_SUFFIXES, read_rows
from vimamba.data.remarks import Remarks
from vimamba.data.volume_files import ENDINGS, is_dicom, stem
from vimamba.data.volumes.challenges import BRATS_NAMES
from vimamba.errors import UsageError
from vimamba.tasks.outputs import (
    FailedInputs,
    Target,
    check_apart,
    is_file,
    no_file,
    output_name,
    present,
    shown,
)


@dataclass(frozen=True)
class Job:
    """One image or volume.

    Attributes:
        paths: Its file, or one file per channel of a volume; any file of a DICOM series.
        name: Path of its mask and overlay relative to the output folder, without suffix.
    """

    paths: tuple[Path, ...]
    name: str

    @property
    def is_volume(self) -> bool:
        """Whether it is cut into slices."""
        return self.paths[0].name.lower().endswith(ENDINGS) or is_dicom(self.paths[0])

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read of it."""
        return series_of(self.paths[0]).files if is_dicom(self.paths[0]) else self.paths

    @property
    def is_scene(self) -> bool:
        """Whether it is a georeferenced GeoTIFF, so that its mask can be georeferenced, too."""
        try:
            return raster_grid(self.paths[0]) is not None
        except DataError:  # reported when it is processed
            return False

    @property
    def ending(self) -> str:
        """Of its mask."""
        if self.is_volume:
            return ".nii.gz"
        return ".tif" if self.is_scene else ".png"

    def mask_file(self, out: Path) -> Path:
        """Path of its mask."""
        return out / f"{self.name}{self.ending}"

    def overlay_file(self, out: Path) -> Path:
        """Path of its overlay."""
        return out / "overlays" / f"{self.name}.png"


def find_jobs(
    inputs: Sequence[Path],
    in_chans: int,
    *,
    out: Path | None = None,
    failed: FailedInputs | None = None,
) -> list[Job]:
    """Images and volumes given directly, in folders and in CSV lists.

    Args:
        inputs: The given paths.
        in_chans: Channels of a volume.
        out: Output folder; files in it are not inputs, unless they are given themselves.
        failed: Receives missing inputs, as long as others exist.

    Raises:
        UsageError: A folder or a list holds no image, two images would get the same name, or
            nothing given exists.
    """
    jobs: list[Job] = []
    failed = failed or FailedInputs()
    for given in present(inputs, failed):
        if given.is_dir():
            slices = [path for path in list_files(given, ("",)) if is_dicom(path)]
            say_left_out(given, slices)
            found = [job_of(p, p.relative_to(given)) for p in list_images(given)]
            found += volume_jobs(given, in_chans)
            found += series_jobs(slices, given)
            if out is not None and not is_below(given, out):
                found = [job for job in found if not is_below(job.paths[0], out)]
            if not found:
                raise UsageError(f"folder {shown(given)} holds no image and no volume")
            jobs += found
        elif given.suffix.lower() in LIST_SUFFIXES and is_file(given):
            rows = read_rows(given, [])
            column = next((c for c in ("image", "path") if c in rows[0]), None)
            if column is None:
                raise UsageError(f"{shown(given)} has neither a column image nor a column path")
            for row in rows:
                path = find_file(given.parent / row[column]) or given.parent / row[column]
                if is_file(path):
                    jobs.append(job_of(path, row[column]))
                else:
                    failed.add(path, no_file(path))
        elif is_dicom(given):  # files of one series may be named one by one
            jobs += [job for job in series_jobs([given], given.parent) if job not in jobs]
        elif is_file(given):
            jobs.append(job_of(given, given.name))
        else:
            failed.add(given, no_file(given))
    if not jobs:
        raise UsageError(next(iter(failed.reasons.values())))
    check_apart([Target(job.mask_file(Path()), str(job.paths[0])) for job in jobs])
    return jobs


def job_of(path: Path, name: str | Path) -> Job:
    """The job of a single file.

    Args:
        path: The file.
        name: Its path in a folder or a list, after which its outputs are named.
    """
    text = Path(name)
    job = Job((path,), "")
    return Job((path,), output_name(str(text.with_name(stem(text))), job.mask_file(Path()).name))


def series_jobs(slices: Sequence[Path], root: Path) -> list[Job]:
    """The DICOM series that files belong to, each called by its folder.

    Where a folder holds several, the number and the description of the series follow.

    Args:
        slices: DICOM files.
        root: Folders are called by their path below it, itself by its name.
    """
    jobs: dict[Path, Job] = {}
    for folder in dict.fromkeys(path.parent for path in slices):
        found, wanted = list_series(folder), set(slices)
        name = folder.relative_to(root) if folder != root else Path(root.resolve().name)
        for series in found:
            if wanted.intersection(series.files):
                text = f"{name}/{series.label}" if len(found) > 1 else str(name)
                jobs[series.files[0]] = Job(series.files[:1], output_name(text, ".nii.gz"))
    return list(jobs.values())


def say_left_out(folder: Path, slices: Sequence[Path]) -> None:
    """Say which files of a folder are no images, apart from DICOM files."""
    remarks = Remarks()
    kept = {path.suffix.lower() or path.name.lower() for path in slices}
    list_files(folder, (*IMAGE_SUFFIXES, *ENDINGS, *kept), remarks)
    for line in remarks.lines():
        say(line)


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder."""
    return path.resolve().is_relative_to(folder.resolve())


def volume_jobs(folder: Path, in_chans: int) -> list[Job]:
    """Volumes in a folder; with several channels, files `case_0000` and so on are one volume.

    With four channels, so are the modalities of BraTS, in their order and without the masks.
    """
    grouped: dict[str, list[Path]] = {}
    for path in list_files(folder, ENDINGS):
        name = (path.parent.relative_to(folder) / stem(path)).as_posix()
        if in_chans > 1 and name[-5:-4] == "_" and name[-4:].isdecimal():
            name = name[:-5]
        grouped.setdefault(name, []).append(path)
    if in_chans == len(BRATS_NAMES[0]):
        grouped = join_modalities(grouped)
    return [Job(tuple(paths), output_name(name, ".nii.gz")) for name, paths in grouped.items()]


def join_modalities(grouped: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Merge volumes whose names end in the modalities of BraTS, without their masks."""
    found = dict(grouped)
    for name in grouped:
        for names in BRATS_NAMES:
            for mark in "_-":
                case = name.removesuffix(f"{mark}{names[0]}")
                files = [f"{case}{mark}{modality}" for modality in names]
                if case == name or not all(file in found for file in files):
                    continue
                found[case] = [path for file in files for path in found.pop(file)]
                found.pop(f"{case}{mark}seg", None)
    return found
