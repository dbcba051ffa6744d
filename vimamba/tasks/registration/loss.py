"""Losses of registration: dissimilarity of the images or their labels, and roughness of fields.

MONAI's losses are used where it has them.

Sizes: N pairs, C channels, K classes, n axes, *grid the axes of an image.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from monai.losses.deform import BendingEnergyLoss
from monai.losses.dice import DiceLoss
from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from vimamba.networks.registration import Registration, warp
from vimamba.tasks.errors import TaskError
from vimamba.tasks.registration.objective import RegistrationObjective


def registration_loss(
    found: Registration,
    fixed: Tensor,
    objective: RegistrationObjective,
    labels: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The weighted losses; their sum is minimized.

    Args:
        found: The network's output for the pair.
        fixed: (N, C, *grid).
        objective: The weights.
        labels: One-hot maps of the moving and of the fixed image, (N, K, *grid), for the classes in
            use; the moving one's are warped linearly.

    Raises:
        TaskError: A loss has a weight, but its inputs are missing.
    """
    weighted = {}
    if objective.ncc:
        loss = ncc_loss(found.moved, fixed, window=objective.ncc_window)
        weighted["ncc"] = objective.ncc * loss
    if objective.mse:
        weighted["mse"] = objective.mse * F.mse_loss(found.moved, fixed)
    if labels is None and (objective.dice or objective.contrastive):
        raise TaskError("dice and contrastive compare labels, and there are none; set them to 0")
    if objective.dice and labels:
        moved = warp(labels[0].to(found.flow.dtype), found.flow)
        weighted["dice"] = objective.dice * dice_loss(moved, labels[1])
    if objective.gradient:
        weighted["gradient"] = objective.gradient * gradient_loss(found.velocity)
    if objective.bending:
        weighted["bending"] = objective.bending * BendingEnergyLoss()(found.flow)
    if objective.contrastive and labels:
        if found.features is None:
            raise TaskError("contrastive compares features, and this network has none; set it to 0")
        weighted["contrastive"] = objective.contrastive * contrastive_loss(found.features, *labels)
    return weighted


def ncc_loss(moved: Tensor, fixed: Tensor, *, window: int = 9) -> Tensor:
    """Squared local normalized cross-correlation of images (N, C, *grid), negated: -1 to 0."""
    loss = LocalNormalizedCrossCorrelationLoss(spatial_dims=moved.ndim - 2, kernel_size=window)
    return loss(moved, fixed)


def dice_loss(moved: Tensor, fixed: Tensor) -> Tensor:
    """1 - Dice of soft and one-hot labels (N, K, *grid), a mean over pairs and classes: 0 to 1.

    A class in neither image counts as Dice 1. MambaMorph's code omits the 1.
    """
    return DiceLoss(smooth_nr=0.0, smooth_dr=1e-5)(moved, fixed)


def gradient_loss(field: Tensor, *, penalty: Literal["l1", "l2"] = "l2") -> Tensor:
    """Mean absolute or squared difference of neighbors of a field (N, n, *grid), over all axes.

    VoxelMorph's (arXiv:1809.05231); MambaMorph's code doubles it.
    """
    differences = (field.diff(dim=axis) for axis in range(2, field.ndim))
    parts = [d.abs().mean() if penalty == "l1" else d.square().mean() for d in differences]
    return torch.stack(parts).mean()


def contrastive_loss(
    features: Tensor,
    moving: Tensor,
    fixed: Tensor,
    *,
    temperature: float = 0.25,
    most: int = 10000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pull features of a class to its mean over both images (MambaMorph, arXiv:2401.13934).

    Args:
        features: (N, 2 F, *half), the moving image's and the fixed one's.
        moving: One-hot labels (N, K, *grid) of the classes in use.
        fixed: Those of the fixed image.
        temperature: Divides the cosine similarities.
        most: Number of labeled cells of each image that are sampled at random.
        generator: Random generator for the sampling, on the CPU.
    """
    size = features.shape[2:]
    both = torch.stack([F.normalize(f, dim=1) for f in features.chunk(2, dim=1)], dim=1).flatten(3)
    labels = torch.stack([F.interpolate(x.to(features.dtype), size=size) for x in (moving, fixed)])
    labels = labels.transpose(0, 1).flatten(3)
    losses = [
        _contrast(f, x, temperature, most, generator) for f, x in zip(both, labels, strict=True)
    ]
    return torch.stack(losses).mean()


def _contrast(
    features: Tensor,
    labels: Tensor,
    temperature: float,
    most: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Loss of one pair: features (2, F, L) and one-hot labels (2, K, L)."""
    counts = labels.sum(-1)
    means = labels @ features.transpose(1, 2) / counts.clamp(min=1).unsqueeze(-1)
    present = counts.sum(0) > 0
    prototypes = means.sum(0) / (counts > 0).sum(0).clamp(min=1).unsqueeze(-1)
    prototypes = F.normalize(prototypes, dim=-1)
    queries, own = [], []
    for feature, label in zip(features, labels, strict=True):
        cells = label.any(0).nonzero().flatten()
        if len(cells) > most:
            drawn = torch.randperm(
                len(cells), generator=generator, dtype=torch.int64, device="cpu"
            )[:most]
            cells = cells[drawn.to(cells.device)]
        queries.append(feature[:, cells].T)
        own.append(label[:, cells].argmax(0))
    cosines = torch.cat(queries) @ prototypes.T / temperature
    positive = cosines.gather(1, torch.cat(own).unsqueeze(1))
    # as in the original, a feature's own class appears again among the compared classes
    logits = torch.cat([positive, cosines[:, present]], dim=1)
    return F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64))
