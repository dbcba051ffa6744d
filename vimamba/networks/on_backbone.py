"""A head on a timm backbone: what networks for all tasks with pixels share."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from vimamba.heads import find_head
from vimamba.networks.dense import DenseNetwork
from vimamba.networks.feature_pyramid import FeaturePyramid
from vimamba.sizes import ImageSize


class OnBackbone(DenseNetwork):
    """The feature pyramid of a timm backbone, `encoder`, for a subclass that adds its heads.

    Args:
        model: timm model name.
        head: Name from `vimamba.list_heads()`.
        title: What is on the backbone, for the description of the network.
        num_classes: Channels of the logits.
        in_chans, pretrained, img_size: See `FeaturePyramid`.
        **kwargs: To the backbone.
    """

    def __init__(
        self,
        model: str,
        head: str,
        title: str,
        *,
        num_classes: int,
        in_chans: int = 3,
        pretrained: bool = False,
        img_size: ImageSize | None = None,
        **kwargs: Any,
    ) -> None:
        encoder = FeaturePyramid(
            model,
            finest_stride=find_head(head).finest_stride,
            pretrained=pretrained,
            in_chans=in_chans,
            img_size=img_size,
            **kwargs,
        )
        coarsest = encoder.strides[-1]
        cfg: Any = encoder.body.pretrained_cfg
        super().__init__(
            (coarsest, coarsest),
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg={
                **cfg,
                "architecture": f"{title} {cfg['architecture']}",
                "input_size": (in_chans, *cfg["input_size"][1:]),
            },
        )
        self.encoder = encoder
        if pretrained:
            self.note_start(self.body)

    def make_head(self, head: str, model: str, channels: Sequence[int]) -> nn.Module:
        """A head for maps with the encoder's strides.

        Args:
            head: Name of the head.
            model: timm model name, for the error.
            channels: Channels of each map.

        Raises:
            ValueError: The head cannot read this many maps, or these strides.
        """
        strides = self.encoder.strides
        try:
            return find_head(head)([*channels], [*strides], self.num_classes)
        except ValueError as error:
            maps = "1 feature map" if len(strides) == 1 else f"{len(strides)} feature maps"
            raise ValueError(
                f"head={head!r} does not fit the {maps} of model={model!r}, strides {strides}: "
                f"{error}; out_indices says which maps a head reads, by default those of all stages"
            ) from error

    @property
    def body(self) -> nn.Module:
        """The backbone."""
        return self.encoder.body.model  # type: ignore[return-value]
