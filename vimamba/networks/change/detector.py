"""What all networks for change between two dates have in common."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from vimamba.networks.dense import DenseNetwork


class SemanticLogits(NamedTuple):
    """Logits of semantic change, each (N, classes, H, W).

    Attributes:
        change: Of no change and change, 2 classes.
        before, after: Of what was there at either date, `num_classes` of the network.
    """

    change: Tensor
    before: Tensor
    after: Tensor


class DamageLogits(NamedTuple):
    """Logits of building damage, each (N, classes, H, W).

    Attributes:
        building: Of no building and building before the event, 2 classes.
        damage: Of the damage after it, `num_classes` of the network.
    """

    building: Tensor
    damage: Tensor


for _logits in (SemanticLogits, DamageLogits):
    # exported programs write down what they return
    _register_namedtuple(_logits, serialized_type_name=f"vimamba.{_logits.__name__}")

_NAMED: dict[str, Any] = {"semantic": SemanticLogits, "damage": DamageLogits}
KINDS = ("binary", *_NAMED)


class ChangeDetector(DenseNetwork):
    """Two images of one place in, logits of their own size out; see `DenseNetwork`.

    Attributes:
        kind: What is asked, "binary", "semantic" or "damage". The answer is logits of change
            (N, num_classes, H, W), `SemanticLogits` or `DamageLogits`.
        stack: How many dates stand in one tensor (N, 2, C_in, H, W), for exported files.
    """

    kind: ClassVar[str] = "binary"
    stack: ClassVar[tuple[int, ...]] = (2,)

    def predict(self, before: Tensor, after: Tensor) -> Sequence[Tensor]:
        """All logits of padded images, at any resolution, in the order of the answer.

        Args:
            before: (N, C_in, H, W), whole cells.
            after: The same.
        """
        raise NotImplementedError

    def forward(
        self, before: Tensor, after: Tensor | None = None
    ) -> Tensor | SemanticLogits | DamageLogits:
        """Two dates to the logits that `kind` tells of.

        Args:
            before: (N, C_in, H, W); or both dates in one tensor (N, 2, C_in, H, W), as torchgeo
                has them.
            after: (N, C_in, H, W), of the same place on the same grid; None if `before` has both.

        Raises:
            ValueError: The dates are not two, or not of one shape.
        """
        if after is None:
            if before.ndim != len(self.cell) + 3 or before.shape[1] != 2:
                raise ValueError(
                    f"before of shape {tuple(before.shape)} without after must be both dates, "
                    "(N, 2, C, H, W)"
                )
            before, after = before.unbind(1)
        elif before.shape != after.shape:
            raise ValueError(
                f"before of shape {tuple(before.shape)} and after of shape {tuple(after.shape)} "
                "must be images of one place on one grid"
            )
        size = before.shape[2:]
        before, after = self.pad(before), self.pad(after)
        logits = self.predict(before, after)
        maps = [self.to_pixels(one, size, before.shape[2:]) for one in logits]
        return _NAMED[self.kind](*maps) if self.kind in _NAMED else maps[0]


def encode_dates(
    encoder: Any, before: Tensor, after: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The pyramids of both dates by one encoder, which reads them as one batch.

    Args:
        encoder: From images (N, C_in, H, W) to maps [(N, C_i, H_i, W_i), ...].
        before: (N, C_in, H, W).
        after: The same.
    """
    features, count = encoder(torch.cat([before, after])), before.shape[0]
    # not `chunk`, which ONNX has no form of for a batch of any size
    return tuple(f[:count] for f in features), tuple(f[count:] for f in features)
