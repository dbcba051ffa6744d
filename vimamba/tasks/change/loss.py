"""Losses of change networks.

Sizes: N pairs, C classes, H x W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vimamba.labels import IGNORE
from vimamba.tasks.segmentation.loss import MaskLoss, MaskObjective

DEFAULT_CHANGE = MaskObjective(ce=1.0, dice=1.0)


@dataclass(frozen=True)
class ChangeObjective:
    """What is minimized: `change + share * (sum over the maps of classes) + similarity * ...`.

    Classes are learned only where there are any: on changed pixels, or on buildings. ChangeMamba
    (arXiv:2404.03425) uses cross-entropy and 0.75 times Lovász; for semantic change a `share` of
    0.5 and a `similarity` of 0.25; for damage a Lovász of 0.5 on buildings.

    Attributes:
        change: Losses of the map of change, or of buildings.
        classes: Losses of the class maps; same as `change` if None.
        share: Weight of each class map.
        similarity: Weight of the squared difference of both dates' probabilities on unchanged
            pixels, as a mean over all pixels; for semantic change.
    """

    change: MaskObjective = DEFAULT_CHANGE
    classes: MaskObjective | None = None
    share: float = 0.5
    similarity: float = 0.25


DEFAULT_CHANGE_OBJECTIVE = ChangeObjective()


class ChangeLoss(nn.Module):
    """Loss of a network's outputs against label maps.

    Args:
        objective: The losses and their weights.
        num_classes: C, of land cover or of damage.
    """

    def __init__(self, objective: ChangeObjective, num_classes: int) -> None:
        super().__init__()
        self.objective = objective
        self.change = MaskLoss(objective.change, 2)
        self.classes = MaskLoss(objective.classes or objective.change, num_classes)

    def forward(self, outputs: Mapping[str, Tensor], truth: Tensor) -> Tensor:
        """A number.

        Args:
            outputs: Logits of each map, (N, channels, H, W), in the order of the truth's.
            truth: (N, M, H, W), classes and `IGNORE`.
        """
        first, *details = outputs
        loss = self.change.single(margin(outputs[first]), truth[:, 0])
        for place, name in enumerate(details, 1):
            # the first class means: no change, or no building
            target = truth[:, place].masked_fill(truth[:, place] == 0, IGNORE)
            logits = outputs[name]
            logits = margin(logits) if self.classes.binary else logits
            loss = loss + self.objective.share * self.classes.single(logits, target)
        if len(details) == 2 and self.objective.similarity:
            before, after = (outputs[name].float().softmax(1) for name in details)
            same = (truth[:, :1] == 0).float()
            apart = ((before - after) * same).square().mean()
            loss = loss + self.objective.similarity * apart
        return loss


def margin(logits: Tensor) -> Tensor:
    """Logits of two classes, (N, 2, H, W), as one whose sigmoid is the softmax of the second."""
    return logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]


def restore_objective(value: ChangeObjective | dict) -> ChangeObjective:
    """Return it as given, or build it from the plain values of a checkpoint."""
    value = vars(value) if isinstance(value, ChangeObjective) else value
    parts = {
        name: MaskObjective(**value[name]) if isinstance(value.get(name), dict) else value.get(name)
        for name in ("change", "classes")
    }
    return ChangeObjective(**{**value, **parts})
