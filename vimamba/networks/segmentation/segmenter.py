"""Base class of all segmentation networks."""

from typing import Any, ClassVar

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from vimamba.layers import crop
from vimamba.networks.dense import DenseNetwork


class Segmenter(DenseNetwork):
    """An image or a volume in, logits of its own size out; see `DenseNetwork`."""

    # classifiers of auxiliary outputs
    optional = ("aux_head.", "aux_classifiers.", "decoder.aux_classifiers.")
    # for networks without a body, which call their parts through `run`
    checkpoints_parts: ClassVar[bool] = False

    def __init__(self, cell: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(cell, **kwargs)
        self.grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in the body, or in all parts of a network without one.

        Raises:
            ValueError: The network supports neither.
        """
        if self.checkpoints_parts:
            self.grad_checkpointing = enable
        else:
            super().set_grad_checkpointing(enable)

    def run(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        """Call a part, which is recomputed in the backward pass if checkpointing is on."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs)
        return part(*inputs)

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of a padded image at any resolution, the main ones first.

        Args:
            x: (N, C_in, *size), whole cells.
            auxiliary: Also return the auxiliary outputs, if there are any.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *size) to logits (N, num_classes, *size)."""
        return self._predict_padded(x, auxiliary=False)[0]

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """(N, C_in, *size) to logits (N, num_classes, *size) and the coarser auxiliary ones."""
        return self._predict_padded(x, auxiliary=True)

    def _predict_padded(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        size, x = x.shape[2:], self.pad(x)
        padded = x.shape[2:]
        logits, *others = self.predict(x, auxiliary=auxiliary)
        return [self.to_pixels(logits, size, padded), *(crop(o, size, padded) for o in others)]
