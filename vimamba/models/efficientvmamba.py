"""EfficientVMamba (Pei et al. 2024, arXiv:2403.09977): sparse scans, then convolutions.

The fine stages pair a gated SS2D, each of whose four paths visits a quarter of the cells, with a
depthwise convolution; the coarse stages are MobileNet's inverted residuals.

Official code: https://github.com/TerryPei/EfficientVMamba (Apache-2.0 by its README)
Sizes: N batch, H and W image or grid, C channels of a stage. Everything is channels-last.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    GATED_SS2D,
    SS2D,
    ChannelGate,
    PatchMerging,
    PatchStem,
    channel_gate_rules,
    split_paths,
    ss2d_rules,
)
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts
from vimamba.models.vmamba import next_stage
from vimamba.timm_layers import ConvNormAct, SqueezeExcite

__all__ = ["EfficientVMamba"]


class ScanConvBlock(nn.Module):
    """A mixer and a depthwise convolution on the same tokens, gated by one set of weights."""

    def __init__(self, dim: int, mixer: nn.Module, *, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = mixer
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd),
            nn.BatchNorm2d(dim, **dd),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1, **dd),
        )
        self.gate = ChannelGate(dim, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        grid = x.shape[1:3]
        y = self.norm(x)
        local = self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.gate(self.mixer(y).flatten(1, 2)) + self.gate(local.flatten(1, 2))
        return x + self.drop_path(y.unflatten(1, grid))


class InvertedResidual(nn.Module):
    """Widen four times, mix the cells of each channel, narrow (arXiv:1801.04381)."""

    def __init__(self, dim: int, *, drop_path: float, **dd: Any) -> None:
        super().__init__()
        wide = 4 * dim
        act = {"act_layer": nn.ReLU, **dd}
        self.mixer = nn.Sequential(
            ConvNormAct(dim, wide, 1, **act),
            ConvNormAct(wide, wide, 3, groups=wide, **act),
            SqueezeExcite(wide, rd_channels=wide // 8, **dd),
            ConvNormAct(wide, dim, 1, apply_act=False, **dd),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        return x + self.drop_path(self.mixer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class EfficientVMamba(StagedBackbone):
    """EfficientVMamba with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage.
        scan_stages: Stages that scan, counted from the first; the others convolve.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        dims: tuple[int, ...] = (48, 96, 192, 384),
        scan_stages: int = 2,
        scan_order: str | Sequence[str] = "atrous",
        **options: Any,
    ) -> None:
        def block(
            stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            if stage >= scan_stages:
                return InvertedResidual(dim, drop_path=rate, **dd)
            mixer = SS2D(dim, scan_order=next(orders), **GATED_SS2D, **dd)
            return ScanConvBlock(dim, mixer, drop_path=rate, **dd)

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=PatchStem,
            block=block,
            downsample=PatchMerging,
            scan_order=scan_order,
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and split each path's parameters into an axis or a layer."""
        return split_paths(super().from_official(state_dict))


def _block_of(theirs: str, leaf: str) -> dict[str, Any]:
    """Rule for a part of an inverted residual; in official code a permutation is layer 0."""
    return {
        rf"layers\.(\d+)\.(\d+)\.{theirs}\.(.*)": lambda match: (
            f"stages.{match[1]}.blocks.{int(match[2]) - 1}.mixer.{leaf}.{match[3]}"
        )
    }


_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_OURS = r"stages.\1.blocks.\2."
RULES = {
    r"patch_embed\.0\.(.*)": r"stem.conv1.\1",
    r"patch_embed\.2\.(.*)": r"stem.norm1.\1",
    **ss2d_rules(_BLOCK + r"op\.", _OURS + "mixer."),
    **channel_gate_rules(_BLOCK + r"se\.", _OURS + "gate."),
    _BLOCK + r"norm\.(.*)": _OURS + r"norm.\3",
    _BLOCK + r"conv_branch\.(.*)": _OURS + r"conv.\3",
    **_block_of(r"conv_pw\.0", "0.conv"),
    **_block_of(r"conv_pw\.1", "0.bn"),
    **_block_of(r"conv_dw\.0", "1.conv"),
    **_block_of(r"conv_dw\.1", "1.bn"),
    **_block_of(r"se\.conv_reduce", "2.fc1"),
    **_block_of(r"se\.conv_expand", "2.fc2"),
    **_block_of(r"conv_pw2\.0", "3.conv"),
    **_block_of(r"conv_pw2\.1", "3.bn"),
    r"layers\.(\d+)\.(?:downsample|\d+)\.(norm|reduction)\.(.*)": next_stage,
    r"classifier\.norm\.(.*)": r"norm.\1",
    r"classifier\.head\.(.*)": r"head.fc.\1",
    r"outnorm(\d)\.(.*)": r"stage_norms.\1.\2",
}
register_family(
    "EfficientVMamba",
    EfficientVMamba,
    RULES,
    layouts=({"stage_norm": True},),
    top1={
        "efficientvmamba_tiny.in1k": 76.5,
        "efficientvmamba_small.in1k": 78.7,
        "efficientvmamba_base.in1k": 81.8,
    },
)

default_cfgs = make_cfgs(
    {
        **{
            f"efficientvmamba_{size}.in1k": {
                "hub": f"TerryPei/EfficientVMamba-{size.capitalize()}",
                "file": f"efficient_vmamba_{size}.ckpt",
            }
            for size in ("tiny", "small", "base")
        },
        "test_efficientvmamba.untrained": {"size": 96},
    },
    license="apache-2.0",
    first_conv="stem.conv1",
    classifier="head.fc",
    origin_url="https://github.com/TerryPei/EfficientVMamba",
    paper_name="EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
    paper_ids="arXiv:2403.09977",
    notes=(
        "the README states Apache-2.0 for the project and nothing of the weights; there is no "
        "license file",
    ),
)


@register_model
def efficientvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-T: 6.5 M parameters."""
    sizes = {"dims": (48, 96, 192, 384)}
    return build_model(EfficientVMamba, "efficientvmamba_tiny", pretrained, kwargs, **sizes)


@register_model
def efficientvmamba_small(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-S: 11.3 M parameters.

    As wide as the released weights; the official configuration file names other widths.
    """
    sizes = {"dims": (64, 128, 256, 512)}
    return build_model(EfficientVMamba, "efficientvmamba_small", pretrained, kwargs, **sizes)


@register_model
def efficientvmamba_base(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-B: 33.7 M parameters."""
    sizes = {"depths": (2, 2, 9, 2), "dims": (96, 192, 384, 768)}
    return build_model(EfficientVMamba, "efficientvmamba_base", pretrained, kwargs, **sizes)


@register_model
def test_efficientvmamba(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """A very small EfficientVMamba for tests; no weights."""
    sizes = {"depths": (1, 2, 1, 1), "dims": (16, 24, 32, 48)}
    return build_model(EfficientVMamba, "test_efficientvmamba", pretrained, kwargs, **sizes)
