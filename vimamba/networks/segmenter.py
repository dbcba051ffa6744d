"""Segmentation networks: what all have in common, and a head on a backbone.

Every network pads the image with zeros, right and below, to whole cells of its coarsest map and
crops the logits, so any height and width will do, and cells lie on pixels exactly.
"""

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

from vimamba.heads import FCNHead, find_head
from vimamba.pyramid import FeaturePyramid


class Segmenter(nn.Module):
    """An image in, logits of its own size out.

    Args:
        cell: Pixels per cell of the coarsest map, for each spatial dimension.
        num_classes: Channels of the logits.
        in_chans: Channels of the images.
        pretrained_cfg: What is known about the images: at least `mean`, `std` and `input_size`.
    """

    def __init__(
        self,
        cell: tuple[int, ...],
        *,
        num_classes: int,
        in_chans: int,
        pretrained_cfg: dict[str, Any],
    ) -> None:
        super().__init__()
        self.cell = cell
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.pretrained_cfg = self.default_cfg = pretrained_cfg

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of a padded image at any resolution, the main ones first.

        Args:
            x: (N, C_in, H, W), whole cells.
            auxiliary: Also give the auxiliary outputs, if there are any.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to logits (N, num_classes, H, W)."""
        return self._predict_padded(x, auxiliary=False)[0]

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """(N, C_in, H, W) to logits (N, num_classes, H, W) and, coarser, the auxiliary ones."""
        return self._predict_padded(x, auxiliary=True)

    def _predict_padded(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        size = x.shape[2:]
        padding = [p for s, c in zip(size, self.cell, strict=True) for p in (-s % c, 0)][::-1]
        x = F.pad(x, padding)
        outputs = self.predict(x, auxiliary=auxiliary)
        if outputs[0].shape[2:] != x.shape[2:]:
            outputs[0] = F.interpolate(
                outputs[0], size=x.shape[2:], mode="bilinear", align_corners=False
            )
        return [self._crop(logits, size, x.shape[2:]) for logits in outputs]

    @staticmethod
    def _crop(logits: Tensor, size: tuple[int, ...], padded: tuple[int, ...]) -> Tensor:
        """Leave the padding's share of the logits out."""
        for dim, (wanted, whole) in enumerate(zip(size, padded, strict=True), start=2):
            logits = logits.narrow(dim, 0, -(-wanted * logits.shape[dim] // whole))
        return logits


class BackboneSegmenter(Segmenter):
    """A head on the feature pyramid of a timm backbone.

    Args:
        model: timm model name.
        head: Name from `vimamba.list_heads()`.
        num_classes: Channels of the logits.
        in_chans, pretrained, img_size: See `FeaturePyramid`.
        aux: Add an FCN head on the second coarsest level.
        **kwargs: To the backbone.
    """

    def __init__(
        self,
        model: str,
        head: str,
        *,
        num_classes: int,
        in_chans: int = 3,
        pretrained: bool = False,
        img_size: int | None = None,
        aux: bool = False,
        **kwargs: Any,
    ) -> None:
        make_head = find_head(head)
        finest_stride: int = make_head.finest_stride  # type: ignore[attr-defined]
        backbone = FeaturePyramid(
            model,
            finest_stride=finest_stride,
            pretrained=pretrained,
            in_chans=in_chans,
            img_size=img_size,
            **kwargs,
        )
        coarsest = backbone.strides[-1]
        cfg: Any = backbone.body.pretrained_cfg
        super().__init__(
            (coarsest, coarsest), num_classes=num_classes, in_chans=in_chans, pretrained_cfg=cfg
        )
        self.backbone = backbone
        self.head = make_head(backbone.channels, backbone.strides, num_classes)
        self.aux_head = FCNHead(backbone.channels, backbone.strides, num_classes) if aux else None

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits at the resolution of the heads; see `Segmenter.predict`."""
        features = self.backbone(x)
        outputs = [self.head(features)]
        if auxiliary and self.aux_head is not None:
            outputs.append(self.aux_head(features))
        return outputs

    def no_weight_decay(self) -> set[str]:
        """What the backbone names."""
        body: Any = self.backbone.body.model
        names = getattr(body, "no_weight_decay", set)()
        return {f"backbone.body.model.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """The backbone's layer groups for layer-wise learning rates; all else is the last one."""
        body: Any = self.backbone.body.model
        layers: Any = group_parameters(body, body.group_matcher(coarse=coarse), reverse=True)
        named = {f"backbone.body.model.{name}": layer for name, layer in layers.items()}
        return lambda name: named.get(name, math.inf)
