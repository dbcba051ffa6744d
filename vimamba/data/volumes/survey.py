"""Surveys every case before training: problems and statistics.

Sizes: D x H x W voxels, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimamba.data.errors import DataError
from vimamba.data.masked.survey import Survey, count_values, in_threads
from vimamba.data.remarks import Remarks, some
from vimamba.data.volumes.cases import VolumeCase

MOST_NAMED = 5
# foreground voxels of each case whose intensities are sampled, as in nnU-Net
SAMPLED = 10_000


@dataclass(frozen=True)
class SeenCase:
    """One case.

    Attributes:
        shape: (D, H, W).
        spacing: Millimeters along each axis.
        values: Voxels of each mask value.
        sample: (n, C) intensities of voxels whose mask is not 0.
        lowest: Minimum of each channel.
        trouble: The problem with it, if any.
    """

    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    values: Mapping[int, int] = ()  # type: ignore[assignment]
    sample: NDArray[np.float32] | None = None
    lowest: tuple[float, ...] = ()
    trouble: str = ""


def look(case: VolumeCase) -> SeenCase:
    """Read one case as a whole."""
    try:
        case.check()
        voxels, mask = case.voxels(), case.mask()
    except DataError as error:
        return SeenCase(trouble=str(error))
    unknown = int((~np.isfinite(voxels)).sum())
    if unknown:
        text = f"volume {case.paths[0]} holds {unknown} values that are not finite (NaN, infinity)"
        return SeenCase(trouble=f"{text}; replace them")
    inside = np.flatnonzero(mask.ravel())
    if len(inside) > SAMPLED:
        inside = np.random.default_rng(len(inside)).choice(inside, SAMPLED, replace=False)
    flat = voxels.reshape(-1, voxels.shape[3])
    return SeenCase(
        case.shape,
        case.spacing,
        count_values(mask),
        flat[inside],
        tuple(flat.min(0).tolist()),
    )


def survey_cases(
    splits: Mapping[str, Sequence[VolumeCase]], workers: int, remarks: Remarks
) -> dict[str, list[SeenCase]]:
    """Survey all cases.

    Args:
        splits: The cases.
        workers: Threads to read with.
        remarks: Receives the names of cases with empty masks.

    Raises:
        DataError: The message names the cases that cannot be used, all at once.
    """
    found: dict[str, list[SeenCase]] = {}
    troubles, empty = [], []
    for split, cases in splits.items():
        found[split] = list(in_threads(look, cases, workers))
        for case, seen in zip(cases, found[split], strict=True):
            if seen.trouble:
                troubles.append(seen.trouble)
            elif set(seen.values) == {0}:
                empty.append(case.mask_name)
    channels = {s.sample.shape[1] for seen in found.values() for s in seen if s.sample is not None}
    if len(channels) > 1 and not troubles:
        named = {case.channels: case.name for cases in splits.values() for case in cases}
        held = ", ".join(f"{count} ({name})" for count, name in sorted(named.items()))
        troubles.append(f"cases differ in their number of channels: {held}")
    if troubles:
        more = len(troubles) - MOST_NAMED
        rest = f"; and {more} more" if more > 0 else ""
        count = f"{len(troubles)} cases cannot be used: " if len(troubles) > 1 else ""
        raise DataError(count + "; ".join(troubles[:MOST_NAMED]) + rest)
    if empty:
        remarks.say(f"{len(empty)} masks hold nothing but 0 ({some(empty)})")
    return found


def join(splits: Mapping[str, Sequence[VolumeCase]], seen: Mapping[str, list[SeenCase]]) -> Survey:
    """Values of the masks, in the form used to infer the classes."""
    pixels: dict[str, dict[int, int]] = {}
    images: dict[str, dict[int, int]] = {}
    holders: dict[int, str] = {}
    kinds: dict[frozenset[int], str] = {}
    for split, cases in splits.items():
        total, count = pixels.setdefault(split, {}), images.setdefault(split, {})
        for case, one in zip(cases, seen[split], strict=True):
            kinds.setdefault(frozenset(one.values), case.mask_name)
            for value, number in one.values.items():
                total[value] = total.get(value, 0) + number
                count[value] = count.get(value, 0) + 1
                holders.setdefault(value, case.mask_name)
    return Survey(pixels, images, (0, 0), (0, 0), holders, kinds)
