"""The effective receptive field (Luo et al. 2016, arXiv:1701.04128).

The pixels that a cell of the last map depends on: the gradient of its channels with respect to the
pixels. The channels are summed with random signs, because a norm may make their plain sum constant.

Sizes: N images, H and W image.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimamba.explain.errors import ExplainError
from vimamba.explain.scans import as_input, find_backbone

SHARES = (0.5, 0.9)


@dataclass(frozen=True)
class ReceptiveField:
    """A receptive field.

    Attributes:
        map: (H, W), contribution of each pixel; sums to 1.
        center: (y, x) of the center of the cell, pixels.
        radii: By fraction: radius in pixels of the disk around the center that contains it.
    """

    map: NDArray[np.float32]
    center: tuple[float, float]
    radii: dict[float, float]


def erf(
    model: nn.Module, images: Tensor, *, probes: int = 4, seed: int = 0, level: int = -1
) -> ReceptiveField:
    """Mean over images of the absolute gradient of the center of a map.

    Args:
        model: In eval mode: a backbone, for its features, or a dense network, for its logits.
        images: (N, C, H, W), preprocessed.
        probes: Random signs per image.
        seed: Seed of the signs.
        level: Index of a backbone's features, as in `forward_intermediates`.

    Raises:
        ExplainError: The images do not fit, or nothing depends on the pixels.
    """
    if images.ndim != 4 or not len(images) or probes < 1:
        raise ExplainError(
            f"images of shape {tuple(images.shape)} must be (N, C, H, W), and probes={probes} at "
            "least 1"
        )
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(images.shape[-2:], dtype=torch.float64, device="cpu")
    center = (0.0, 0.0)
    for image in images:
        padded = as_input(model, image).requires_grad_()
        with torch.enable_grad():
            values = _read(model, padded, level)
            row, column = values.shape[-2] // 2, values.shape[-1] // 2
            middle = values[0, :, row, column]
        for _ in range(probes):
            drawn = torch.randint(
                2, middle.shape, generator=generator, dtype=torch.int64, device="cpu"
            )
            signs = drawn.to(middle) * 2 - 1
            (gradient,) = torch.autograd.grad(middle, padded, signs, retain_graph=True)
            field = gradient[0].abs().sum(0)[: total.shape[0], : total.shape[1]]
            total += field.double().cpu()
        cell = padded.shape[-2] / values.shape[-2], padded.shape[-1] / values.shape[-1]
        center = ((row + 0.5) * cell[0], (column + 0.5) * cell[1])
    if not total.sum() > 0:
        raise ExplainError(f"model={type(model).__name__}: no pixel affects the center of its map")
    field = (total / total.sum()).numpy()
    radii = {share: _radius(field, center, share) for share in SHARES}
    return ReceptiveField(field.astype(np.float32), center, radii)


def _read(model: nn.Module, image: Tensor, level: int) -> Tensor:
    """The map (1, C, h, w) whose center is differentiated."""
    if find_backbone(model) is model:
        features = cast(Any, model).forward_intermediates(image, intermediates_only=True)
        return features[level]
    values = model(image)
    if not isinstance(values, Tensor) or values.ndim != 4:
        raise ExplainError(
            f"model={type(model).__name__} must be a backbone of ours or return a map (N, C, H, W)"
        )
    return values


def _radius(field: NDArray[np.float64], center: tuple[float, float], share: float) -> float:
    """Radius of the disk that contains this fraction of a map that sums to 1."""
    y, x = np.indices(field.shape) + 0.5
    distance = np.hypot(y - center[0], x - center[1]).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(field.ravel()[order])
    return float(distance[order][min(np.searchsorted(held, share), held.size - 1)])
