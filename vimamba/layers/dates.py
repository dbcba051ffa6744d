"""Maps of two dates as one map, for scans that walk over both (Chen et al. 2024, arXiv:2404.03425).

ChangeMamba arranges them in three ways, whatever the scan order and the mixer are:

    parallel     side by side in the channels: a step reads one place at both dates
    interleaved  columns by turns: the second date of a place follows the first along its row
    sequential   one after the other along the width: a row of the first date, then of the second

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
    """What a mixer made of joined maps, on the grid (H, W) again.

    Args:
        x: (N, C, H, W) if "parallel", else (N, C, H, 2 W).
        arrangement: The same as of `join_dates`.

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
    """Refuse what is none of the three.

    Raises:
        ValueError: It is unknown.
    """
    if arrangement not in ARRANGEMENTS:
        raise ValueError(f"arrangement={arrangement!r} is unknown; choose from {ARRANGEMENTS}")
