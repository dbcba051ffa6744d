"""What all segmentation networks have in common.

Every network pads the image with zeros, right and below, to whole cells of its coarsest map and
crops the logits, so any height and width will do, and cells lie on pixels exactly.
"""

from typing import Any, ClassVar

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from vimamba.layers import crop, pad_to_cells, resize
from vimamba.networks.network import Network


class Segmenter(Network):
    """An image or a volume in, logits of its own size out.

    Args:
        cell: Pixels per cell of the coarsest map, for each spatial dimension.
        num_classes: Channels of the logits.
        in_chans: Channels of the images.
        pretrained_cfg: See `Network`.
    """

    # per side of the coarsest map; an instance norm needs more than one
    fewest_cells = 1
    # for networks without a body: they hand their parts to `run`
    checkpoints_parts: ClassVar[bool] = False
    # classifiers of auxiliary outputs
    optional = ("aux_head.", "aux_classifiers.", "decoder.aux_classifiers.")

    def __init__(
        self,
        cell: tuple[int, ...],
        *,
        num_classes: int,
        in_chans: int,
        pretrained_cfg: dict[str, Any],
    ) -> None:
        super().__init__(in_chans, pretrained_cfg={**pretrained_cfg, "num_classes": num_classes})
        self.cell = cell
        self.num_classes = num_classes
        self.grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in the body, or in all parts of a network without one.

        Raises:
            ValueError: The network has neither.
        """
        if self.checkpoints_parts:
            self.grad_checkpointing = enable
        else:
            super().set_grad_checkpointing(enable)

    def run(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        """What a part gives; it is computed again for the gradients if checkpointing is on."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs)
        return part(*inputs)

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of a padded image at any resolution, the main ones first.

        Args:
            x: (N, C_in, *size), whole cells.
            auxiliary: Also give the auxiliary outputs, if there are any.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *size) to logits (N, num_classes, *size)."""
        return self._predict_padded(x, auxiliary=False)[0]

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """(N, C_in, *size) to logits (N, num_classes, *size) and, coarser, the auxiliary ones."""
        return self._predict_padded(x, auxiliary=True)

    def _predict_padded(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        if x.ndim != len(self.cell) + 2:
            raise ValueError(
                f"x of {x.ndim} dimensions must have {len(self.cell) + 2}: batch, channels and "
                f"{len(self.cell)} of space"
            )
        size = x.shape[2:]
        x = pad_to_cells(x, list(self.cell), self.fewest_cells)
        outputs = self.predict(x, auxiliary=auxiliary)
        if outputs[0].shape[2:] != x.shape[2:]:
            outputs[0] = resize(outputs[0], x.shape[2:])
        return [crop(logits, size, x.shape[2:]) for logits in outputs]
