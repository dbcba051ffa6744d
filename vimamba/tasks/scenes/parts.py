"""The finished block rows of a map, so that it can be continued after any interruption.

Every block row is a file that is written completely or not at all, in a folder next to the map
whose name says that it is unfinished. The files alone record what is done.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.errors import UsageError
from vimamba.files import write_whole

ENDING = ".unfinished"
_IDENTITY = "map.json"


class Parts:
    """The finished block rows of each stripe.

    Args:
        folder: Folder with the files; created if missing.
        identity: What they are part of. Files of anything else are deleted.

    Raises:
        UsageError: The folder is not one of ours.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        known, text = folder / _IDENTITY, json.dumps(identity, indent=1, sort_keys=True)
        if folder.is_dir() and any(folder.glob("[!.]*")):
            if not known.is_file():
                raise UsageError(f"{folder} is not an unfinished map of ours; choose another --out")
            if known.read_text(encoding="utf-8") != text:
                shutil.rmtree(folder)
        if not known.is_file():
            with write_whole(known) as part:
                part.write_text(text, encoding="utf-8")

    def _file(self, stripe: int, block: int) -> Path:
        return self.folder / f"{stripe:04d}_{block:06d}.npz"

    def count(self, stripe: int) -> int:
        """Block rows of a stripe that are done, from the top."""
        count = 0
        while self._file(stripe, count).is_file():
            count += 1
        return count

    def write(self, stripe: int, block: int, arrays: Mapping[str, NDArray]) -> None:
        """Save a block row: arrays whose last two axes are lines and columns."""
        with write_whole(self._file(stripe, block)) as part:
            np.savez_compressed(part, allow_pickle=False, **arrays)

    def read(self, stripe: int, block: int) -> dict[str, NDArray]:
        """A block row of a stripe."""
        with np.load(self._file(stripe, block), allow_pickle=False) as found:
            return dict(found)

    def row(self, stripes: int, block: int, name: str) -> NDArray:
        """One array of a block row, with all stripes side by side."""
        found = []
        for stripe in range(stripes):
            with np.load(self._file(stripe, block), allow_pickle=False) as arrays:
                found.append(arrays[name])
        return found[0] if stripes == 1 else np.concatenate(found, axis=-1)

    def remove(self) -> None:
        """Delete the folder when the map is finished."""
        shutil.rmtree(self.folder)
