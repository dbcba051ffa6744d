"""A head on a timm backbone."""

from typing import Any

from torch import Tensor, nn

from vimamba.heads import FCNHead, find_head
from vimamba.networks.feature_pyramid import FeaturePyramid
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.sizes import ImageSize


@register_network(task="segmentation", name="backbone_segmenter")
class BackboneSegmenter(Segmenter):
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
        make_head = find_head(head)
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
                "architecture": f"{head} on {cfg['architecture']}",
                "input_size": (in_chans, *cfg["input_size"][1:]),
            },
        )
        self.encoder = encoder
        self.head = make_head(encoder.channels, encoder.strides, num_classes)
        self.aux_head = FCNHead(encoder.channels, encoder.strides, num_classes) if aux else None
        if pretrained:
            self.note_start(self.body)

    @property
    def body(self) -> nn.Module:
        """The backbone."""
        return self.encoder.body.model  # type: ignore[return-value]

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits at the resolution of the heads; see `Segmenter.predict`."""
        features = self.encoder(x)
        outputs = [self.head(features)]
        if auxiliary and self.aux_head is not None:
            outputs.append(self.aux_head(features))
        return outputs
