"""Losses of segmentation: a weighted sum over the main and the auxiliary outputs.

Sizes: N images, C classes (1 for a binary mask, which gets a sigmoid), H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.labels import IGNORE
from vimamba.tasks.errors import TaskError


@dataclass(frozen=True)
class MaskObjective:
    """What is minimized; a weight of 0 disables a loss.

    Attributes:
        ce: Weight of the cross-entropy, binary for two classes.
        dice: Weight of the soft Dice loss.
        focal: Weight of the focal loss.
        lovasz: Weight of the Lovász loss.
        focal_gamma: How strongly the focal loss down-weights pixels that are already correct.
        dice_background: Include the first class in the Dice loss.
        dice_batch: Compute the Dice loss over a batch as one image, more stable for rare classes.
        class_weights: Weight of each class in cross-entropy and focal loss, "balanced" (inverse
            frequency of its pixels) or None.
        aux_weights: Weight of each output after the main one; by default a half, a quarter and so
            on, as in nnU-Net.
    """

    ce: float = 1.0
    dice: float = 1.0
    focal: float = 0.0
    lovasz: float = 0.0
    focal_gamma: float = 2.0
    dice_background: bool = True
    dice_batch: bool = False
    class_weights: str | list[float] | None = None
    aux_weights: list[float] | None = None


DEFAULT_MASK_OBJECTIVE = MaskObjective()


class MaskLoss(nn.Module):
    """Loss of logits against class indices; ignored pixels do not count.

    Args:
        objective: The losses and their weights.
        num_classes: Classes, at least 2; two have one output.

    Raises:
        TaskError: No loss has a weight, or the class weights do not fit.
    """

    def __init__(self, objective: MaskObjective, num_classes: int) -> None:
        super().__init__()
        self.objective = objective
        self.binary = num_classes == 2
        parts = (objective.ce, objective.dice, objective.focal, objective.lovasz)
        if min(parts) < 0 or max(parts) == 0:
            raise TaskError(
                f"objective: ce, dice, focal, lovasz are {parts}; one must be above 0, none below"
            )
        requested = objective.class_weights
        if isinstance(requested, str) and requested != "balanced":
            raise TaskError(f"class_weights={requested!r} must be 'balanced' or a list of numbers")
        weights = torch.ones(num_classes, dtype=torch.float32, device=None)
        if isinstance(requested, list):
            if len(requested) != num_classes:
                raise TaskError(
                    f"class_weights has {len(requested)} values for {num_classes} classes"
                )
            weights = torch.tensor(requested, dtype=torch.float32, device=None)
        # part of the checkpoint, because balanced weights come from the training data
        self.register_buffer("class_weight", weights)
        self.dice = make_dice(objective, binary=self.binary) if objective.dice else None

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Weighted sum over the outputs.

        Args:
            outputs: (N, C, h, w) logits, the main ones first; the target is resized to each.
            target: (N, H, W), classes and `IGNORE`.
        """
        further = self.objective.aux_weights or [0.5**i for i in range(1, len(outputs))]
        if len(further) != len(outputs) - 1:
            raise TaskError(
                f"aux_weights={further} has {len(further)} values for {len(outputs) - 1} outputs"
            )
        terms = [
            weight * self.single(logits, shrink(target, logits.shape[2:]))
            for weight, logits in zip([1.0, *further], outputs, strict=True)
        ]
        return torch.stack(terms).sum()

    def single(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of one output at the target's size, (N, C, H, W) and (N, H, W)."""
        o, valid = self.objective, target != IGNORE
        logits, index = logits.float(), target.masked_fill(~valid, 0).long()
        loss = logits.new_zeros(())
        if o.ce or o.focal:
            entropy = self.entropy(logits, index)
            # true half precision also converts the buffer; its sum over all pixels would overflow
            weight = cast(Tensor, self.class_weight).float()[index] * valid
            total = weight.sum().clamp(min=1e-6)
            if o.ce:
                loss = loss + o.ce * (entropy * weight).sum() / total
            if o.focal:
                hard = (1 - (-entropy).exp()) ** o.focal_gamma
                loss = loss + o.focal * (hard * entropy * weight).sum() / total
        if o.dice or o.lovasz:
            probability = logits.sigmoid() if self.binary else logits.softmax(1)
            if self.dice is not None:
                hot = (
                    index[:, None]
                    if self.binary
                    else F.one_hot(index, logits.shape[1]).movedim(-1, 1)
                )
                mask = valid[:, None]
                loss = loss + o.dice * self.dice(probability * mask, hot.float() * mask)
            if o.lovasz:
                loss = loss + o.lovasz * lovasz_loss(probability, index, valid)
        return loss

    def entropy(self, logits: Tensor, index: Tensor) -> Tensor:
        """Cross-entropy of every pixel, (N, H, W), by operations deterministic on GPUs."""
        if self.binary:
            target = index[:, None].float()
            return F.binary_cross_entropy_with_logits(logits, target, reduction="none")[:, 0]
        return -logits.log_softmax(1).gather(1, index[:, None])[:, 0]


def make_dice(objective: MaskObjective, *, binary: bool) -> nn.Module:
    """Soft Dice loss of probabilities (N, C, H, W) against zeros and ones of the same shape."""
    from monai.losses.dice import DiceLoss

    background = binary or objective.dice_background
    return DiceLoss(include_background=background, batch=objective.dice_batch)


def shrink(target: Tensor, size: Sequence[int]) -> Tensor:
    """Class indices (N, H, W) at another size, by the nearest pixel."""
    if target.shape[1:] == tuple(size):
        return target
    small = F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest-exact")
    return small[:, 0].to(target.dtype)


def lovasz_loss(probability: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Lovász-softmax: a convex surrogate of the IoU, mean over the classes that occur.

    Berman et al. 2018, arXiv:1705.08790, algorithm 1.

    Args:
        probability: (N, C, H, W); one channel is the second class of two.
        index: (N, H, W) int64.
        valid: (N, H, W), pixels to count.
    """
    kept = probability.movedim(1, -1)[valid]
    index = index[valid]
    classes = [1] if kept.shape[1] == 1 else index.unique().tolist()
    losses = []
    for label in classes:
        truth = (index == label).float()
        channel = kept[:, 0] if kept.shape[1] == 1 else kept[:, label]
        errors, order = (truth - channel).abs().sort(descending=True)
        truth = truth[order]
        total = truth.sum()
        jaccard = 1 - (total - truth.cumsum(0)) / (total + (1 - truth).cumsum(0))
        gradient = torch.cat([jaccard[:1], jaccard.diff()])
        losses.append((errors * gradient).sum())  # a matrix product would lose precision
    return torch.stack(losses).mean() if len(index) else probability.sum() * 0
