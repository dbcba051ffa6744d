"""timm models as backbones of torchvision's detectors."""

from collections import OrderedDict
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool


class FPNBackbone(nn.Module):
    """A timm model with a feature pyramid network, for `FasterRCNN` and similar detectors.

    Args:
        model: timm name or address.
        out_channels: Channels of every level.
        extra_blocks: Module for additional, coarser levels; one, by pooling, if None. torchvision's
            anchors fit four levels of the model and this one.
        **kwargs: Arguments of `timm.create_model`.
    """

    def __init__(
        self,
        model: str,
        out_channels: int = 256,
        *,
        extra_blocks: ExtraFPNBlock | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.body = timm.create_model(model, features_only=True, **kwargs)
        self.fpn = FeaturePyramidNetwork(
            self.body.feature_info.channels(),  # type: ignore[union-attr,operator]
            out_channels,
            extra_blocks=extra_blocks or LastLevelMaxPool(),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) to levels (N, out_channels, h, w) from fine to coarse, "0", "1", …."""
        maps = self.body(x)
        return self.fpn(OrderedDict((str(level), y) for level, y in enumerate(maps)))
