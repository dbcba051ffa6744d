"""Feature pyramid of any timm backbone, the input of heads."""

import inspect
import math
from collections.abc import Collection
from typing import Any, cast

import timm
from torch import Tensor, nn

from vimamba.layers import SimplePyramid
from vimamba.sizes import ImageSize, read_size, sides_of
from vimamba.timm_names import create_skeleton


class FeaturePyramid(nn.Module):
    """Feature maps of any timm backbone, fine to coarse.

    A backbone whose features all have one stride s yields four maps of strides s/4, s/2, s and 2s,
    computed from evenly spaced blocks, either by the backbone itself, if its class supports it, or
    here. If it has fewer than four blocks, or a single stage, maps next to each other come from the
    same features. The class attribute `dense` has the arguments its models are created with for
    dense prediction.

    Args:
        backbone: timm model name.
        finest_stride: Leave finer levels out.
        pretrained: Load published weights.
        in_chans: Channels of the images; pretrained filters are adapted.
        img_size: Side of the images, or height and width, pixels; for backbones whose weights
            depend on it.
        **kwargs: Arguments of the backbone.

    Attributes:
        channels: Channels of each map.
        strides: Image pixels per feature cell, for each map.

    Raises:
        ValueError: `out_indices` names no four blocks of a backbone of one stride, or that stride
            is below 4.
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
        probe = create_skeleton(backbone, **described)
        takes = _arguments(type(probe))
        dense = getattr(type(probe), "dense", None)
        if dense is None:  # timm's own models only support this
            dense = {"dynamic_img_size": True} if "dynamic_img_size" in takes else {}
        kwargs = {**dense, **kwargs}
        if dense:  # which may change the features
            described |= {k: kwargs[k] for k in dense}
            probe = create_skeleton(backbone, **described)
        strides: list[int] = [level["reduction"] for level in probe.feature_info]  # type: ignore[union-attr]
        plain = len(set(strides)) == 1
        # of a backbone of one stride: which of its maps each level is computed from
        self.sources = [0, 1, 2, 3]
        if plain:
            if strides[0] < 4:
                raise ValueError(
                    f"backbone={backbone!r} has features of stride {strides[0]} only, too fine for "
                    "a pyramid with a level four times as fine: it takes a stride of 4 or more"
                )
            if "out_indices" not in kwargs:
                quarters = [math.ceil(len(strides) * part / 4) - 1 for part in (1, 2, 3, 4)]
                blocks = sorted(set(quarters))
                kwargs["out_indices"] = tuple(blocks)
                self.sources = [blocks.index(block) for block in quarters]
        else:
            # the last of the blocks with maps of one stride
            last = {stride: i for i, stride in enumerate(strides) if stride >= finest_stride}
            kwargs.setdefault("out_indices", list(last.values()))
        if img_size is not None and "img_size" in takes:
            coarsest = 2 * max(strides) if plain else max(strides)
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
            if len(set(info.out_indices)) != len(set(self.sources)):
                raise ValueError(
                    f"out_indices={kwargs['out_indices']} must list four blocks of {backbone}, "
                    f"whose features all have stride {strides[0]}"
                )
            stride = strides[0]
            self.levels = SimplePyramid(self.channels[0])
            self.channels = [self.channels[source] for source in self.sources]
            self.strides = [stride // 4, stride // 2, stride, 2 * stride]

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, C_in, H, W) to [(N, channels[i], H / strides[i], W / strides[i]), ...]."""
        features = self.body(image)
        if self.levels is not None:
            features = [self.levels(features[source], i) for i, source in enumerate(self.sources)]
        return features


def _arguments(model_cls: type[nn.Module]) -> Collection[str]:
    """Arguments of a model's constructor; our models declare them."""
    listed = getattr(model_cls, "arguments", None)
    return listed() if listed else inspect.signature(model_cls.__init__).parameters
