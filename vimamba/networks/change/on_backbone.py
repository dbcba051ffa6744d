"""A head on a timm backbone that reads two dates."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vimamba.heads import find_fusion
from vimamba.networks.change.detector import ChangeDetector, encode_dates
from vimamba.networks.on_backbone import OnBackbone
from vimamba.networks.registry import register_network
from vimamba.sizes import ImageSize


@register_network(task="change", name="backbone_change_detector")
class BackboneChangeDetector(OnBackbone, ChangeDetector):
    """A head on what the feature pyramids of two dates by one timm backbone are joined to.

    Args:
        model: timm model name.
        head: Name from `vimamba.list_heads()`.
        fusion: Name from `vimamba.list_fusions()`.
        fusion_kwargs: Arguments of the fusion.
        num_classes: Channels of the logits.
        in_chans, pretrained, img_size: See `FeaturePyramid`.
        **kwargs: Arguments of the backbone.
    """

    def __init__(
        self,
        model: str,
        head: str = "upernet",
        fusion: str = "difference",
        fusion_kwargs: Mapping[str, Any] | None = None,
        *,
        num_classes: int = 2,
        in_chans: int = 3,
        pretrained: bool = False,
        img_size: ImageSize | None = None,
        **kwargs: Any,
    ) -> None:
        make_fusion = find_fusion(fusion)
        super().__init__(
            model,
            head,
            f"{head} on {fusion} of",
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            img_size=img_size,
            **kwargs,
        )
        self.fusion = make_fusion(self.encoder.channels, **(fusion_kwargs or {}))
        self.head = self.make_head(head, model, self.fusion.channels)

    def predict(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Logits at the resolution of the head; see `ChangeDetector.predict`."""
        return [self.head(self.fusion(*encode_dates(self.encoder, before, after)))]
