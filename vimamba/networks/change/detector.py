"""Base class of all change-detection networks."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from vimamba.networks.dense import DenseNetwork


class SemanticLogits(NamedTuple):
    """Logits of semantic change, each (N, classes, H, W).

    Attributes:
        change: No change and change, 2 classes.
        before: Classes at the first date, `num_classes` of the network.
        after: Classes at the second date, as many.
    """

    change: Tensor
    before: Tensor
    after: Tensor


class DamageLogits(NamedTuple):
    """Logits of building damage, each (N, classes, H, W).

    Attributes:
        building: No building and building before the event, 2 classes.
        damage: Damage after the event, `num_classes` of the network.
    """

    building: Tensor
    damage: Tensor


for _logits in (SemanticLogits, DamageLogits):
    # exported programs serialize their return types
    _register_namedtuple(_logits, serialized_type_name=f"vimamba.{_logits.__name__}")

_NAMED: dict[str, Any] = {"semantic": SemanticLogits, "damage": DamageLogits}
KINDS = ("binary", *_NAMED)


class ChangeDetector(DenseNetwork):
    """Two images of one place in, logits of their own size out; see `DenseNetwork`.

    Attributes:
        kind: "binary", "semantic" or "damage". The output is logits of change (N, num_classes, H,
            W), `SemanticLogits` or `DamageLogits`, respectively.
        stack: Number of dates in one tensor (N, 2, C_in, H, W), for exported files.
    """

    kind: ClassVar[str] = "binary"
    stack: ClassVar[tuple[int, ...]] = (2,)

    def predict(self, before: Tensor, after: Tensor) -> Sequence[Tensor]:
        """All logits of padded images, at any resolution, in the order of the output.

        Args:
            before: (N, C_in, H, W), whole cells.
            after: The same.
        """
        raise NotImplementedError

    def forward(
        self, before: Tensor, after: Tensor | None = None
    ) -> Tensor | SemanticLogits | DamageLogits:
        """Two dates to the logits of `kind`.

        Args:
            before: (N, C_in, H, W); or both dates in one tensor (N, 2, C_in, H, W), as in torchgeo.
            after: (N, C_in, H, W), of the same place on the same grid; None if `before` has both.

        Raises:
            ValueError: There are not two dates, or their shapes differ.
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
    """The pyramids of both dates from one encoder, which reads them as one batch.

    Args:
        encoder: Module from images (N, C_in, H, W) to maps [(N, C_i, H_i, W_i), ...].
        before: (N, C_in, H, W).
        after: The same.
    """
    features, count = encoder(torch.cat([before, after])), before.shape[0]
    # not `chunk`, which ONNX has no form of for a batch of any size
    return tuple(f[:count] for f in features), tuple(f[count:] for f in features)
