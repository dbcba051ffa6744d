"""A head on a timm backbone."""

from typing import Any

from torch import Tensor

from vimamba.heads import FCNHead
from vimamba.networks.on_backbone import OnBackbone
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.sizes import ImageSize


@register_network(task="segmentation", name="backbone_segmenter")
class BackboneSegmenter(OnBackbone, Segmenter):
    """A head on the feature pyramid of a timm backbone.

    Args:
        model: timm model name.
        head: Name from `vimamba.list_heads()`.
        num_classes: Channels of the logits.
        in_chans, pretrained, img_size: See `FeaturePyramid`.
        aux: Add an FCN head on the second coarsest level.
        **kwargs: Arguments of the backbone.
    """

    def __init__(
        self,
        model: str,
        head: str = "upernet",
        *,
        num_classes: int,
        in_chans: int = 3,
        pretrained: bool = False,
        img_size: ImageSize | None = None,
        aux: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            head,
            f"{head} on",
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            img_size=img_size,
            **kwargs,
        )
        channels, strides = self.encoder.channels, self.encoder.strides
        self.head = self.make_head(head, model, channels)
        self.aux_head = FCNHead(channels, strides, num_classes) if aux else None

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits at the resolution of the heads; see `Segmenter.predict`."""
        features = self.encoder(x)
        outputs = [self.head(features)]
        if auxiliary and self.aux_head is not None:
            outputs.append(self.aux_head(features))
        return outputs
