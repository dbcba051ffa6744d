"""The feature pyramid of any timm backbone: what a head is given."""

import inspect
import math
from typing import Any, cast

import timm
from torch import Tensor, nn

from vimamba.layers import SimplePyramid
from vimamba.sizes import ImageSize, read_size, sides_of

# what a constructor has to offer for dense prediction: a norm on every stage, images of any size
_DENSE = {"stage_norm": True, "dynamic_img_size": True}


class FeaturePyramid(nn.Module):
    """Feature maps of any timm backbone, fine to coarse.

    A backbone whose features all have one stride s gives four maps of strides s/4, s/2, s and 2s,
    made from evenly spaced blocks: by the backbone itself, if it takes `pyramid`, or here.

    Args:
        backbone: timm model name.
        finest_stride: Leave finer levels out.
        pretrained: Load published weights.
        in_chans: Channels of the images; pretrained filters are adapted.
        img_size: Side of the images, or height and width, pixels; for backbones whose weights
            depend on it.
        **kwargs: To the backbone.

    Attributes:
        channels: Channels of each map.
        strides: Image pixels per feature cell, for each map.
    """

    def __init__(
        self,
        backbone: str,
        *,
        finest_stride: int = 4,
        pretrained: bool = False,
        in_chans: int = 3,
        img_size: ImageSize | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        described = {
            k: v for k, v in kwargs.items() if k not in ("out_indices", "pretrained_cfg_overlay")
        }
        probe = timm.create_model(backbone, device="meta", **described)
        takes = inspect.signature(type(probe).__init__).parameters
        kwargs = {**{k: v for k, v in _DENSE.items() if k in takes}, **kwargs}
        if "stage_norm" in takes:  # which may leave fewer features
            dense = {"stage_norm": kwargs["stage_norm"]}
            probe = timm.create_model(backbone, device="meta", **{**described, **dense})
        strides: list[int] = [level["reduction"] for level in probe.feature_info]  # type: ignore[union-attr]
        quarters = tuple(math.ceil(len(strides) * part / 4) - 1 for part in (1, 2, 3, 4))
        plain = len(set(strides)) == 1
        if plain and "pyramid" in takes:
            kwargs = {"pyramid": quarters, "class_token": "none", **kwargs}
            plain = False
        elif plain:
            kwargs.setdefault("out_indices", quarters)
        else:
            # of blocks with maps of one stride, the last
            last = {stride: i for i, stride in enumerate(strides) if stride >= finest_stride}
            kwargs.setdefault("out_indices", list(last.values()))
        if img_size is not None and "img_size" in takes:
            coarsest = 2 * max(strides) if len(set(strides)) == 1 else max(strides)
            whole = [math.ceil(side / coarsest) * coarsest for side in sides_of(img_size)]
            kwargs.setdefault("img_size", read_size(whole))
        self.body = timm.create_model(
            backbone,
            pretrained=pretrained,
            in_chans=in_chans,
            features_only=True,
            feature_cls="getter",
            **kwargs,
        )
        info = cast(Any, self.body.feature_info)
        self.channels: list[int] = info.channels()
        self.strides: list[int] = info.reduction()
        self.levels = None
        if plain:
            if len(self.channels) != 4:
                raise ValueError(
                    f"out_indices={kwargs['out_indices']} must name four blocks of {backbone}, "
                    f"whose features all have stride {strides[0]}"
                )
            stride = strides[0]
            self.levels = SimplePyramid(self.channels[0])
            self.strides = [stride // 4, stride // 2, stride, 2 * stride]

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, C_in, H, W) to [(N, channels[i], H / strides[i], W / strides[i]), ...]."""
        features = self.body(image)
        if self.levels is not None:
            features = [self.levels(f, i) for i, f in enumerate(features)]
        return features
