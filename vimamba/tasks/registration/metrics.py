"""Scores of a registration: overlap and distance of labels after warping, and folding.

Sizes: N pairs, K classes, n axes, *grid the axes of an image.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from torch import Tensor

from vimamba.networks.registration import jacobian_determinant, warp


def warp_labels(labels: Tensor, flow: Tensor) -> Tensor:
    """Warp integer labels (N, *grid) by a field (N, n, *grid); 0 outside."""
    # float64 represents all integers that occur
    moved = warp(labels.unsqueeze(1).double(), flow, mode="nearest")
    return moved.squeeze(1).to(labels.dtype)


def dice_scores(moved: Tensor, fixed: Tensor, num_classes: int) -> Tensor:
    """Dice of each class of integer labels (N, *grid): (N, K); NaN if neither has the class."""
    return compute_dice(*_one_hots(moved, fixed, num_classes), ignore_empty=True)


def hausdorff_distances(
    moved: Tensor,
    fixed: Tensor,
    num_classes: int,
    *,
    spacing: Sequence[float] | None = None,
    percentile: float = 95.0,
) -> Tensor:
    """Hausdorff distance of each class's surfaces, without the first class (background).

    MONAI's: the larger of the percentiles of both directions. (MambaMorph's code takes one
    percentile over both together, which is smaller or equal.)

    Args:
        moved: Integer labels (N, *grid).
        fixed: Labels to compare with.
        num_classes: K.
        spacing: Cell spacing along each axis in millimeters; without it, distances are in cells.
        percentile: Percentile of the distances; 100 is the maximum.

    Returns:
        (N, K - 1); NaN or infinite where a class is absent.
    """
    return compute_hausdorff_distance(
        *_one_hots(moved, fixed, num_classes),
        percentile=percentile,
        spacing=None if spacing is None else [float(step) for step in spacing],
    )


def folded_share(flow: Tensor) -> Tensor:
    """Fraction of cells (N,) where a field (N, n, *grid) folds: Jacobian determinant <= 0."""
    return (jacobian_determinant(flow) <= 0).flatten(1).double().mean(1)


def _one_hots(moved: Tensor, fixed: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    first, second = (
        F.one_hot(labels.long(), num_classes).movedim(-1, 1) for labels in (moved, fixed)
    )
    return first, second
