"""Proposes spacing, patch size and intensities from a data set's fingerprint.

The rules are those that nnU-Net publishes (Isensee et al. 2021, arXiv:1904.08128, supplementary
note 2; the ends of the feature maps in arXiv:2404.09556), with a budget of voxels instead of its
memory estimate.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from vimamba.data.preprocessing import Intensity
from vimamba.data.volumes.survey import SeenCase

# a spacing is called anisotropic beyond this ratio of the coarsest to the finest axis
ANISOTROPIC = 3.0
# voxels of a patch: nnU-Net's usual 128^3 on a GPU, otherwise a size that a CPU handles in seconds
GPU_VOXELS, CPU_VOXELS = 128**3, 48**3
# minimum cells of the coarsest map along an axis, and maximum number of halvings
COARSEST, HALVINGS = 4, 5
# values as low as this are Hounsfield units of air: no other modality has them
AIR = -500.0
# percentiles of the foreground that a CT is clipped to
CLIPPED = (0.5, 99.5)


def target_spacing(cases: Sequence[SeenCase]) -> tuple[float, ...]:
    """The spacing to resample to, mm: the median of the cases along each axis.

    If the coarsest axis is more than three times as coarse as the finest and has fewer than a third
    of its voxels, the tenth percentile along that axis, so that slices are not merged.
    """
    spacings = np.asarray([case.spacing for case in cases])
    shapes = np.asarray([case.shape for case in cases])
    target, sizes = np.median(spacings, 0), np.median(shapes, 0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    coarse = target[worst] > ANISOTROPIC * target[others].min()
    if coarse and sizes[worst] * ANISOTROPIC < sizes[others].max():
        lowest = float(np.percentile(spacings[:, worst], 10))
        target[worst] = max(lowest, float(target[others].max()))
    return tuple(float(f"{length:.4g}") for length in target)


def sizes_at(cases: Sequence[SeenCase], spacing: Sequence[float]) -> list[int]:
    """Median voxels along each axis after resampling to a spacing."""
    sizes = [resampled_size(case.shape, case.spacing, spacing) for case in cases]
    return [round(float(size)) for size in np.median(sizes, 0)]


def resampled_size(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[int, ...]:
    """Voxels of a volume along each axis at another spacing."""
    return tuple(
        max(1, round(n * own / wanted))
        for n, own, wanted in zip(shape, spacing, target, strict=True)
    )


def propose_patch(
    sizes: Sequence[int], spacing: Sequence[float], voxels: int | None = None
) -> tuple[int, ...]:
    """The size of the patches that the network sees.

    It starts as a cube in millimeters of 256^3 voxels, cropped to the median case; the axis that
    covers most of its case shrinks until the voxels fit the budget. Sides are multiples of the
    stride of a network that halves an axis while at least 4 cells are left, at most 5 times.

    Args:
        sizes: Median voxels of the cases, at the spacing.
        spacing: Millimeters along each axis.
        voxels: The budget; 128^3 with a GPU, else 48^3.
    """
    budget = voxels or (GPU_VOXELS if torch.cuda.is_available() else CPU_VOXELS)
    inverse = 1 / np.asarray(spacing, dtype=np.float64)
    cube = inverse * (256**3 / inverse.prod()) ** (1 / 3)
    patch = [whole_cells(min(round(side), n)) for side, n in zip(cube, sizes, strict=True)]
    while math.prod(patch) > budget:
        covers = [
            side / n if side > COARSEST else 0.0 for side, n in zip(patch, sizes, strict=True)
        ]
        axis = int(np.argmax(covers))
        if covers[axis] == 0:
            break
        patch[axis] = whole_cells(patch[axis] - 1)
    return tuple(patch)


def whole_cells(side: int) -> int:
    """The side rounded down to whole cells of the coarsest map."""
    if side <= COARSEST:
        return max(side, 1)
    cell = 2 ** min(HALVINGS, int(math.log2(side / COARSEST)))
    return side // cell * cell


def propose_intensity(
    cases: Sequence[SeenCase], *, is_ct: bool | None
) -> tuple[Intensity, list[float], list[float]]:
    """How values become the network's input, with the mean and standard deviation to use.

    CT, whose values have an absolute meaning, is clipped to the 0.5 and 99.5 percentiles of the
    foreground and normalized by its mean and standard deviation over all training cases. For
    anything else, every case and channel is clipped to its own percentiles and normalized to mean 0
    and standard deviation 1.

    Args:
        cases: Training cases.
        is_ct: Whether the data set is CT, if it says so; None: it is if air of -500 HU or less
            occurs in all cases, which have one channel.
    """
    samples = [case.sample for case in cases if case.sample is not None and len(case.sample)]
    channels = len(cases[0].lowest)
    if is_ct is None:
        is_ct = channels == 1 and all(case.lowest[0] <= AIR for case in cases)
    if not (is_ct and samples):
        whole = Intensity(percentiles=CLIPPED, zscore=True)
        return whole, [0.0] * channels, [1.0] * channels
    pooled = np.concatenate(samples).astype(np.float64)
    low, high = np.percentile(pooled, CLIPPED, axis=0)
    high = np.maximum(high, low + 1)
    scaled = ((pooled - low) / (high - low)).clip(0, 1)
    ranges = [(round(float(a), 3), round(float(b), 3)) for a, b in zip(low, high, strict=True)]
    mean = [round(float(v), 5) for v in scaled.mean(0)]
    std = [round(max(float(v), 1e-3), 5) for v in scaled.std(0)]
    return Intensity(ranges=ranges), mean, std
