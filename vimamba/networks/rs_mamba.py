"""RS-Mamba (Zhao et al. 2024, arXiv:2404.02668): shared code of its two networks.

The encoder is a VMamba with eight paths: rows, columns, wrapped diagonals, and all reversed; the
decoder is a U-Net with 1x1 convolutions.

Official code: https://github.com/walking-shadow/Official_Remote_Sensing_Mamba (Apache-2.0); there
are no published weights. Sizes: N batch, C channels, H and W map.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vimamba.checkpoints import Rules
from vimamba.heads.blocks import ConvNormAct
from vimamba.layers import GATED_SS2D, resize, ss2d_rules
from vimamba.models.vmamba import VMamba
from vimamba.networks.dense import EncodedNetwork
from vimamba.timm_layers import ConvNormAct as ConvNorm

DIMS = (96, 192, 384, 768)


class Decoder(nn.Module):
    """From a pyramid to logits of every pixel, with concatenated skips.

    Args:
        channels: Channels of the pyramid, fine to coarse.
        num_classes: Output channels.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        pairs = pairwise(channels)
        self.fuse = nn.ModuleList(ConvNormAct(fine + coarse, fine, 1) for fine, coarse in pairs)
        half = channels[0] // 2
        self.upsample = nn.Sequential(
            ConvNorm(channels[0], half, 3, bias=True),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            ConvNorm(half, 8, 3, bias=True),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        )
        self.classifier = nn.Conv2d(8, num_classes, 7, padding=3)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i), ...] to (N, num_classes, 4 H_0, 4 W_0)."""
        *skips, x = features
        for fuse, skip in zip(reversed(self.fuse), reversed(skips), strict=True):
            x = fuse(torch.cat([resize(x, skip.shape[2:], mode="nearest"), skip], dim=1))
        return self.classifier(self.upsample(x))


def _numbered(ours: str) -> Any:
    """A replacement for names numbered from 1."""
    return lambda match: ours.format(int(match["stage"]) - 1) + match.expand(r"\g<rest>")


def _stage_rules() -> dict[str, Any]:
    stage = r"encoder_block(?P<stage>\d)\."
    block = stage + r"blocks\.(?P<block>\d+)\."

    def behind(new: str) -> Any:
        return lambda m: f"encoder.stages.{int(m['stage']) - 1}.blocks.{m['block']}.{m.expand(new)}"

    inner = {
        **ss2d_rules(r"op\.", "mixer."),
        r"norm\.(?P<leaf>.*)": r"norm1.\g<leaf>",
        r"(?P<leaf>(?:norm2|mlp)\..*)": r"\g<leaf>",
    }
    downsample = {"1": "conv", "3": "norm"}
    return {
        **{block + theirs: behind(ours) for theirs, ours in inner.items()},
        **{
            rf"{stage}downsample\.{theirs}\.(?P<rest>.*)": _numbered(
                f"encoder.stages.{{}}.downsample.{ours}."
            )
            for theirs, ours in downsample.items()
        },
    }


RULES: dict[str, Any] = {
    r"patch_embed\.0\.(.*)": r"encoder.stem.conv1.\1",
    r"patch_embed\.2\.(.*)": r"encoder.stem.norm1.\1",
    r"patch_embed\.5\.(.*)": r"encoder.stem.conv2.\1",
    r"patch_embed\.7\.(.*)": r"encoder.stem.norm2.\1",
    **_stage_rules(),
    # sic
    r"deocder_block(?P<stage>\d)\.fuse\.0\.(?P<rest>.*)": _numbered("decoder.fuse.{}.conv."),
    r"deocder_block(?P<stage>\d)\.fuse\.1\.(?P<rest>.*)": _numbered("decoder.fuse.{}.bn."),
    r"upsample_x4\.0\.(.*)": r"decoder.upsample.0.conv.\1",
    r"upsample_x4\.1\.(.*)": r"decoder.upsample.0.bn.\1",
    r"upsample_x4\.4\.(.*)": r"decoder.upsample.2.conv.\1",
    r"upsample_x4\.5\.(.*)": r"decoder.upsample.2.bn.\1",
    # of change
    r"fuse_block(?P<stage>\d)\.fuse\.0\.(?P<rest>.*)": _numbered("fusion.convs.{}.conv."),
    r"fuse_block(?P<stage>\d)\.fuse\.1\.(?P<rest>.*)": _numbered("fusion.convs.{}.bn."),
}


class RSMambaNetwork(EncodedNetwork):
    """The encoder, the decoder and the official names, for a subclass that `predict`s.

    Args:
        num_classes: Channels of the logits; published with one, of a binary mask.
        in_chans: Channels of the images.
        depths: Blocks per stage of the encoder.
        dims: Channels of the encoder's stages.
        d_state: States per channel of the scans.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take by turns.
        drop_path_rate: Of the last block.
    """

    official_paths = 8
    # its registered name, and that of the last layer in the official code
    published_name: ClassVar[str]
    official_classifier: ClassVar[str]

    def __init__(
        self,
        num_classes: int = 1,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: Sequence[int] = DIMS,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "omni_wrap",
        drop_path_rate: float = 0.0,
    ) -> None:
        cell = 4 * 2 ** (len(dims) - 1)
        super().__init__(
            (cell, cell),
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg={
                "architecture": self.published_name,
                "input_size": (in_chans, 256, 256),
                "license": "apache-2.0",
                "origin_url": "https://github.com/walking-shadow/Official_Remote_Sensing_Mamba",
                "paper_ids": "arXiv:2404.02668",
            },
        )
        # with a gate, many states and an MLP
        self.encoder = VMamba(
            in_chans=in_chans,
            num_classes=0,
            depths=tuple(depths),
            dims=tuple(dims),
            scan_order=scan_order,
            drop_path_rate=drop_path_rate,
            **{**GATED_SS2D, "d_state": d_state},
        )
        # its last stage is as raw as the others
        self.encoder.prune_intermediate_layers(len(depths), prune_norm=True)
        self.decoder = Decoder(dims, num_classes)

    @classmethod
    def official_rules(cls) -> Rules:
        """How the parameters of an official file are renamed."""
        return {**RULES, rf"{cls.official_classifier}\.(.*)": r"decoder.classifier.\1"}
