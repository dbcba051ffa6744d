"""Joins maps of two dates into one, for scans over both (Chen et al. 2024, arXiv:2404.03425).

ChangeMamba arranges them in three ways, whatever the scan order and the mixer are:

    parallel     concatenated in the channels: a step reads one position at both dates
    interleaved  alternating columns: the second date of a position follows the first along its row
    sequential   concatenated along the width: a row of the first date, then of the second

Sizes: N batch, C channels, H and W map.
"""

import torch
from torch import Tensor

ARRANGEMENTS = ("parallel", "interleaved", "sequential")


def join_dates(before: Tensor, after: Tensor, arrangement: str) -> Tensor:
    """Two maps (N, C, H, W) as one: (N, 2 C, H, W) if "parallel", else (N, C, H, 2 W).

    Raises:
        ValueError: The arrangement is unknown.
    """
    check_arrangement(arrangement)
    if arrangement == "interleaved":
        return torch.stack([before, after], dim=-1).flatten(-2)
    return torch.cat([before, after], dim=1 if arrangement == "parallel" else -1)


def part_dates(x: Tensor, arrangement: str) -> list[Tensor]:
    """Split a mixer's output for joined maps back to the grid (H, W).

    Args:
        x: (N, C, H, W) if "parallel", else (N, C, H, 2 W).
        arrangement: The same as in `join_dates`.

    Returns:
        One map (N, C, H, W) if "parallel", else two, the first date's before the second's.

    Raises:
        ValueError: The arrangement is unknown.
    """
    check_arrangement(arrangement)
    if arrangement == "parallel":
        return [x]
    if arrangement == "interleaved":
        return [x[..., ::2], x[..., 1::2]]
    # not `chunk`, which ONNX has no form of for images of any size
    width = x.shape[-1] // 2
    return [x[..., :width], x[..., width:]]


def check_arrangement(arrangement: str) -> None:
    """Fail on an unknown arrangement.

    Raises:
        ValueError: It is unknown.
    """
    if arrangement not in ARRANGEMENTS:
        raise ValueError(f"arrangement={arrangement!r} is unknown; choose from {ARRANGEMENTS}")
