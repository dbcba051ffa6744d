"""Records in a folder of predicted masks, so that prediction can be continued.

`prediction.json` records the checkpoint and the options, `masks.csv` the image of each mask. Both
are written before the masks: files that they do not list are not ours.
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vimamba.errors import UsageError
from vimamba.files import check_writable, list_entries, write_whole
from vimamba.tasks.outputs import is_file, shown
from vimamba.tasks.segmentation.jobs import Job

RECORD, TABLE = "prediction.json", "masks.csv"


@dataclass(frozen=True)
class Entry:
    """State of an image when its mask was made: a row of `masks.csv`.

    Attributes:
        mask: Path of the mask in the folder.
        image: Path of the image; the first file if a volume has several.
        bytes: Size of its files.
        modified: When they were last changed, nanoseconds.
    """

    mask: str
    image: str
    bytes: int
    modified: int

    @classmethod
    def of(cls, job: Job) -> "Entry | None":
        """Current state of an image; None if it cannot be found."""
        try:
            states = [os.stat(path) for path in job.files]
        except (OSError, ValueError):
            return None
        return cls(
            job.mask_file(Path()).as_posix(),
            os.path.abspath(job.paths[0]),
            sum(state.st_size for state in states),
            max(state.st_mtime_ns for state in states),
        )


def keep_record(out: Path, *checkpoints: Path, **options: Any) -> None:
    """Record the origin of the masks in a folder.

    Raises:
        UsageError: The folder holds masks of another checkpoint or with other options, or
            something else.
        WriteError: The record cannot be written.
    """
    states = [checkpoint.stat() for checkpoint in checkpoints]
    record = {
        "checkpoints": [str(checkpoint.resolve()) for checkpoint in checkpoints],
        "sizes": [state.st_size for state in states],
        "modified": [state.st_mtime_ns for state in states],
        **options,
    }
    path = out / RECORD
    if os.path.exists(path):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UsageError(f"{path} is damaged; name another --out or remove {out}") from None
        if found != record:
            raise UsageError(
                f"--out {out} holds masks of another checkpoint or with other options "
                f"(see {path}); name another folder or remove it"
            )
    elif os.path.exists(out) and list_entries(out):
        raise UsageError(f"--out {out} holds files that are not predictions; choose another folder")
    check_writable(out)
    if not os.path.exists(path):
        with write_whole(path) as part:
            part.write_text(json.dumps(record, indent=2), encoding="utf-8")


def claim(out: Path, jobs: Sequence[Job], *, overlays: bool) -> list[Job]:
    """Enter images in `masks.csv`, and delete masks of images that have changed since.

    Args:
        out: The folder to write.
        jobs: The images.
        overlays: Whether overlays belong to the masks.

    Returns:
        The images whose masks are still missing.

    Raises:
        UsageError: An existing file is not ours, or belongs to another image.
        WriteError: The folder cannot be written.
    """
    entries = read_entries(out)
    wanted: list[Job] = []
    stale: list[Path] = []
    for job in jobs:
        mask, overlay = job.mask_file(out), job.overlay_file(out)
        now = Entry.of(job)
        key = mask.relative_to(out).as_posix()
        before = entries.get(key)
        for path in (mask, overlay):
            if before is None and os.path.lexists(path):
                raise UsageError(
                    f"{shown(path)} is not one of our predictions; choose another --out"
                )
        if now is None:  # it will be reported as unreadable
            wanted.append(job)
            continue
        if before is not None and before.image != now.image:
            raise UsageError(
                f"{shown(mask)} is the mask of {shown(before.image)}, and that of "
                f"{shown(now.image)} would have the same name; name another --out"
            )
        done = is_file(mask) and (is_file(overlay) or not overlays)
        if done and before == now and mask.stat().st_mtime_ns >= now.modified:
            continue
        stale += [path for path in (mask, overlay) if os.path.lexists(path)]
        entries[key] = now
        wanted.append(job)
    for path in stale:  # first, so that the table never lists an outdated mask
        path.unlink()
    if wanted:
        write_entries(out, entries)
    return wanted


def read_entries(out: Path) -> dict[str, Entry]:
    """The rows of `masks.csv` by mask; empty if there is no such file.

    Raises:
        UsageError: The file is damaged.
    """
    path = out / TABLE
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        found = [
            Entry(row["mask"], row["image"], int(row["bytes"]), int(row["modified"]))
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise UsageError(f"{path} is damaged; name another --out or remove {out}") from None
    return {entry.mask: entry for entry in found}


def write_entries(out: Path, entries: Mapping[str, Entry]) -> None:
    """Write `masks.csv`."""
    with (
        write_whole(out / TABLE) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, list(Entry.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in entries.values())
