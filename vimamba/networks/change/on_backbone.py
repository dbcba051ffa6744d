"""A head on a timm backbone that reads two dates."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vimamba.heads import find_fusion, find_head
from vimamba.networks.change.detector import ChangeDetector, encode_dates
from vimamba.networks.feature_pyramid import FeaturePyramid
from vimamba.networks.registry import register_network


@register_network(task="change", name="backbone_change_detector")
class BackboneChangeDetector(ChangeDetector):
    """A head on the fused feature pyramids of two dates from one timm backbone.

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
        img_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        make_head, make_fusion = find_head(head), find_fusion(fusion)
        encoder = FeaturePyramid(
            model,
            finest_stride=make_head.finest_stride,
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
                "architecture": f"{head} on {fusion} of {cfg['architecture']}",
                "input_size": (in_chans, *cfg["input_size"][1:]),
            },
        )
        self.encoder = encoder
        self.fusion = make_fusion(encoder.channels, **(fusion_kwargs or {}))
        self.head = make_head(list(self.fusion.channels), encoder.strides, num_classes)
        if pretrained:
            self.note_start(self.body)

    @property
    def body(self) -> nn.Module:
        """The backbone."""
        return self.encoder.body.model  # type: ignore[return-value]

    def predict(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Logits at the resolution of the head; see `ChangeDetector.predict`."""
        return [self.head(self.fusion(*encode_dates(self.encoder, before, after)))]
