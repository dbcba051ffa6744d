"""Swin-UMamba and Swin-UMamba-D (Liu et al. 2024, arXiv:2402.03302): U-Nets on a VMamba.

The encoder is the tiny VMamba of the first generation. Swin-UMamba puts a convolutional stem before
it and decodes with residual convolutions; the lighter Swin-UMamba-D reads the image directly and
decodes with VSS blocks.

Official code: https://github.com/JiarunLiu/Swin-UMamba (Apache-2.0)
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from vimamba.heads import VSSHead
from vimamba.layers import PatchStem
from vimamba.networks.dense import EncodedNetwork
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.networks.segmentation.unetr import ResidualBlock, UpBlock, unetr_rules
from vimamba.networks.segmentation.vss_encoder import (
    Rules,
    block_rules,
    encoder_rules,
    load_vmamba,
    make_encoder,
)
from vimamba.sizes import ImageSize

_CFG: dict[str, Any] = {
    "license": "apache-2.0",
    "origin_url": "https://github.com/JiarunLiu/Swin-UMamba",
    "paper_ids": "arXiv:2402.03302",
}
_START = "vmamba_tiny_v0"


class SwinUMamba(EncodedNetwork, Segmenter):
    """Swin-UMamba.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images.
        depths: Blocks per stage of the encoder.
        dims: Channels of the stem and of the encoder's stages.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        drop_path_rate: Drop rate of the encoder's last block.
        deep_supervision: Auxiliary outputs at 1/2, 1/4 and 1/8.
        pretrained: Start the encoder, except its patch embedding, from VMamba-T.
        pretrained_cfg_overlay: Location of its weights, as for `timm.create_model`.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 9, 2),
        dims: tuple[int, ...] = (48, 96, 192, 384, 768),
        scan_order: str | Sequence[str] = "cross",
        drop_path_rate: float = 0.2,
        deep_supervision: bool = False,
        pretrained: bool = False,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    ) -> None:
        if len(dims) != len(depths) + 1:
            raise ValueError(f"dims={dims} must cover the stem and the stages of depths={depths}")
        cell = 2 ** len(dims)
        cfg = {**_CFG, "architecture": "swin_umamba", "input_size": (in_chans, 320, 320)}
        super().__init__(
            (cell, cell), num_classes=num_classes, in_chans=in_chans, pretrained_cfg=cfg
        )
        self.conv_stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0], 7, stride=2, padding=3),
            nn.InstanceNorm2d(dims[0], affine=True),
        )
        self.encoder = make_encoder(
            dims[0], depths, dims=dims[1:], scan_order=scan_order, drop_path_rate=drop_path_rate
        )
        self.encoder.stem = PatchStem(dims[0], dims[1], patch_size=2)
        self.skips = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise((in_chans, *dims)))
        upwards = (dims[-1], *reversed(dims))
        self.ups = nn.ModuleList(UpBlock(a, b) for a, b in pairwise(upwards))
        self.refine = ResidualBlock(dims[0], dims[0])
        self.classifier = nn.Conv2d(dims[0], num_classes, 1)
        supervised = dims[1:-1] if deep_supervision else ()
        self.aux_classifiers = nn.ModuleList(nn.Conv2d(d, num_classes, 1) for d in supervised)
        if pretrained:
            # the published list of randomly initialized parameters does not include the norm's bias
            fresh = ("stem.conv1.weight", "stem.conv1.bias", "stem.norm1.weight")
            overlay = {"pretrained_cfg_overlay": pretrained_cfg_overlay}
            self.note_start(load_vmamba(self.encoder, _START, fresh=fresh, **overlay))

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of the padded image; see `Segmenter.predict`."""
        stem = self.conv_stem(x)
        *inputs, deepest = [x, stem, *self.encode(stem)]
        skips = [skip(feature) for skip, feature in zip(self.skips, inputs, strict=True)]
        levels, x = [], deepest
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(x, skip)
            levels.insert(0, x)
        outputs = [self.classifier(self.refine(x))]
        if auxiliary:
            supervised = zip(self.aux_classifiers, levels[1:], strict=False)
            outputs += [classifier(level) for classifier, level in supervised]
        return outputs

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return _OFFICIAL_KEYS


_OFFICIAL_KEYS: Rules = {
    r"stem\.(.*)": r"conv_stem.\1",
    **encoder_rules(r"vssm_encoder\.", r"downsamples\.(\d+)"),
    **unetr_rules(6),
    r"out_layers\.0\.conv\.conv\.(.*)": r"classifier.\1",
    r"out_layers\.(\d)\.conv\.conv\.(.*)": lambda m: f"aux_classifiers.{int(m[1]) - 1}.{m[2]}",
}


class SwinUMambaD(EncodedNetwork, Segmenter):
    """Swin-UMamba-D.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images; pretrained filters are adapted.
        depths: Blocks per stage of the encoder.
        dims: Channels of the encoder's stages.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks of the encoder take in turn, and those of the
            decoder.
        drop_path_rate: Drop rate of the last block of the encoder and of the decoder.
        deep_supervision: Auxiliary outputs at 1/4, 1/8 and 1/16.
        pretrained: Start the encoder from VMamba-T.
        pretrained_cfg_overlay: Location of its weights, as for `timm.create_model`.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 9, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        scan_order: str | Sequence[str] = "cross",
        drop_path_rate: float = 0.2,
        deep_supervision: bool = False,
        pretrained: bool = False,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    ) -> None:
        strides = [4 * 2**i for i in range(len(dims))]
        cfg = {**_CFG, "architecture": "swin_umamba_d", "input_size": (in_chans, 320, 320)}
        super().__init__(
            (strides[-1], strides[-1]),
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg=cfg,
        )
        shared: dict[str, Any] = {"scan_order": scan_order, "drop_path_rate": drop_path_rate}
        self.encoder = make_encoder(in_chans, depths, dims=dims, **shared)
        self.decoder = VSSHead(
            list(dims), strides, num_classes, deep_supervision=deep_supervision, **shared
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=1e-2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if pretrained:
            overlay = {"in_chans": in_chans, "pretrained_cfg_overlay": pretrained_cfg_overlay}
            self.note_start(load_vmamba(self.encoder, _START, **overlay))

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of the padded image; see `Segmenter.predict`."""
        features = self.encode(x)
        return self.decoder.forward_all(features) if auxiliary else [self.decoder(features)]

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return _OFFICIAL_KEYS_D


_OFFICIAL_KEYS_D: Rules = {
    **encoder_rules(r"vssm_encoder\.", r"downsamples\.(\d+)"),
    **block_rules(r"decoder\.stages\.(\d)\.blocks\.(\d+)\.", r"decoder.blocks.\1.blocks.\2."),
    r"decoder\.expand_layers\.3\.(.*)": r"decoder.expand.\1",
    r"decoder\.expand_layers\.(\d)\.(.*)": r"decoder.blocks.\1.upsample.\2",
    r"decoder\.concat_back_dim\.(\d)\.(.*)": r"decoder.blocks.\1.join.\2",
    r"decoder\.seg_layers\.3\.(.*)": r"decoder.classifier.\1",
    r"decoder\.seg_layers\.(\d)\.(.*)": r"decoder.aux_classifiers.\1.\2",
}


@register_network(task="segmentation")
def swin_umamba(
    *, aux: bool = False, img_size: ImageSize | None = None, **kwargs: Any
) -> SwinUMamba:
    """Swin-UMamba as published: 59.9 M parameters, for images of any size."""
    return SwinUMamba(deep_supervision=aux, **kwargs)


@register_network(task="segmentation")
def swin_umamba_d(
    *, aux: bool = False, img_size: ImageSize | None = None, **kwargs: Any
) -> SwinUMambaD:
    """Swin-UMamba-D as published: 27.5 M parameters, for images of any size."""
    return SwinUMambaD(deep_supervision=aux, **kwargs)
