"""VMamba (Liu et al. 2024, arXiv:2401.10166): a four-stage pyramid of SS2D blocks.

Two generations share this file. The first (`*_v0`) patchifies, merges patches and gates a 16-state
scan without MLPs; the second (`*_s<ratio>l<depth>`) uses strided convolutions, one state and MLPs,
and (`*_m2`) Mamba-2's scan with 64 states.

Official code: https://github.com/MzeroMiko/VMamba (MIT)
Sizes: N batch, H and W image or grid, C channels of a stage. Everything is channels-last.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from timm.models import register_model
from torch import nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    GATED_SS2D,
    SS2D,
    SSD2D,
    OverlapDownsample,
    OverlapStem,
    PatchMerging,
    PatchStem,
    VSSBlock,
    split_paths,
    ss2d_rules,
)
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts

__all__ = ["VMamba"]

_MIXERS = {"ss2d": SS2D, "ssd2d": SSD2D}
FIRST_GENERATION: dict[str, Any] = {**GATED_SS2D, "mlp_ratio": 0.0, "overlapping": False}


class VMamba(StagedBackbone):
    """VMamba backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage.
        mixer: "ss2d", the scan of Mamba, or "ssd2d", that of Mamba-2.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        d_state: States per channel of the scan.
        expand: Inner channels of the mixer divided by channels.
        mlp_ratio: Hidden channels of the MLP divided by channels; 0 for none.
        gated: Gate the mixer's output.
        conv_bias: Give the mixer's depthwise convolution a bias.
        overlapping: Strided 3x3 convolutions in stem and between stages; patchify and merge if
            False (first generation).
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 2, 8, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        mixer: str = "ss2d",
        scan_order: str | Sequence[str] = "cross",
        d_state: int = 1,
        expand: float = 1.0,
        mlp_ratio: float = 4.0,
        gated: bool = False,
        conv_bias: bool = False,
        overlapping: bool = True,
        **options: Any,
    ) -> None:
        if mixer not in _MIXERS:
            raise ValueError(f"mixer={mixer!r} is unknown; choose from {list(_MIXERS)}")
        scan = {"d_state": d_state, "expand": expand, "gated": gated, "conv_bias": conv_bias}

        def block(
            _stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            made = _MIXERS[mixer](dim, scan_order=next(orders), **scan, **dd)
            return VSSBlock(dim, made, mlp_ratio=mlp_ratio, drop_path=rate, **dd)

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=OverlapStem if overlapping else PatchStem,
            block=block,
            downsample=OverlapDownsample if overlapping else PatchMerging,
            scan_order=scan_order,
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and split each path's parameters into an axis or a layer."""
        state = split_paths(super().from_official(state_dict))
        for key, value in state.items():
            if "conv" not in key and value.ndim == 4:  # a Linear2d stored as a 1x1 convolution
                state[key] = value.flatten(1)
        return state


def next_stage(match: re.Match[str]) -> str:
    """Official code downsamples at the end of a stage, ours at the start of the next."""
    leaf = {"1": "conv", "3": "norm"}.get(match[2], match[2])
    return f"stages.{int(match[1]) + 1}.downsample.{leaf}.{match[3]}"


_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
RULES = {
    r"patch_embed\.(?:0|proj)\.(.*)": r"stem.conv1.\1",
    r"patch_embed\.(?:2|norm)\.(.*)": r"stem.norm1.\1",
    r"patch_embed\.5\.(.*)": r"stem.conv2.\1",
    r"patch_embed\.7\.(.*)": r"stem.norm2.\1",
    **ss2d_rules(_BLOCK + r"(?:op|self_attention)\.", r"stages.\1.blocks.\2.mixer."),
    _BLOCK + r"(?:norm|ln_1)\.(.*)": r"stages.\1.blocks.\2.norm1.\3",
    _BLOCK + r"(norm2|mlp\.fc\d)\.(.*)": r"stages.\1.blocks.\2.\3.\4",
    r"layers\.(\d+)\.downsample\.(1|3|norm|reduction)\.(.*)": next_stage,
    r"(?:classifier\.)?norm\.(.*)": r"norm.\1",
    r"(?:classifier\.)?head\.(weight|bias)": r"head.fc.\1",
    r"outnorm(\d)\.(.*)": r"stage_norms.\1.\2",
}
register_family(
    "VMamba",
    VMamba,
    RULES,
    layouts=({"stage_norm": True},),
    top1={
        "vmamba_tiny_s1l8.in1k": 82.6,
        "vmamba_small_s1l20.in1k": 83.3,
        "vmamba_base_s1l20.in1k": 83.8,
        "vmamba_tiny_s2l5.in1k": 82.5,
        "vmamba_small_s2l15.in1k": 83.6,
        "vmamba_base_s2l15.in1k": 83.9,
        "vmamba_tiny_s2l4.in1k": 82.5,
        "vmamba_tiny_v0.in1k": 82.2,
        "vmamba_small_v0.in1k": 83.5,
        "vmamba_base_v0.in1k": 83.7,
    },
    remarks="`s1l8` has mixers as wide as the block and 8 blocks in its third stage; `s2l5` has "
    "mixers twice as wide and 5 blocks. `v0` is the first generation, `m2` has Mamba-2's scan.",
)

_V2, _V0 = "%23v2cls", "%23v0cls"
_FIRST = "first generation (v0)"
default_cfgs = make_cfgs(
    {
        "vmamba_tiny_s1l8.in1k": {"file": f"{_V2}/vssm1_tiny_0230s_ckpt_epoch_264.pth"},
        "vmamba_small_s1l20.in1k": {"file": f"{_V2}/vssm1_small_0229s_ckpt_epoch_240.pth"},
        "vmamba_base_s1l20.in1k": {"file": f"{_V2}/vssm1_base_0229s_ckpt_epoch_225.pth"},
        "vmamba_tiny_s2l5.in1k": {"file": f"{_V2}/vssm_tiny_0230_ckpt_epoch_262.pth"},
        "vmamba_small_s2l15.in1k": {"file": f"{_V2}/vssm_small_0229_ckpt_epoch_222.pth"},
        "vmamba_base_s2l15.in1k": {"file": f"{_V2}/vssm_base_0229_ckpt_epoch_237.pth"},
        "vmamba_tiny_s2l4.in1k": {"file": "%2320240220/vssmtiny_dp02_ckpt_epoch_258.pth"},
        "vmamba_tiny_v0.in1k": {
            "file": f"{_V0}/vssmtiny_dp01_ckpt_epoch_292.pth",
            "note": _FIRST,
        },
        "vmamba_small_v0.in1k": {
            "file": f"{_V0}/vssmsmall_dp03_ckpt_epoch_238.pth",
            "note": _FIRST,
        },
        "vmamba_base_v0.in1k": {"file": f"{_V0}/vssmbase_dp06_ckpt_epoch_241.pth", "note": _FIRST},
        "vmamba_tiny_m2.untrained": {},
        "vmamba_small_m2.untrained": {},
        "test_vmamba.untrained": {"size": 96},
        "test_vmamba_m2.untrained": {"size": 96},
    },
    folder="https://github.com/MzeroMiko/VMamba/releases/download",
    license="mit",
    first_conv="stem.conv1",
    classifier="head.fc",
    origin_url="https://github.com/MzeroMiko/VMamba",
    paper_name="VMamba: Visual State Space Model",
    paper_ids="arXiv:2401.10166",
)

_BASE_DIMS = (128, 256, 512, 1024)
_M2: dict[str, Any] = {"mixer": "ssd2d", "d_state": 64}


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, expansion 1, 8 blocks in stage 3: 30.2 M parameters."""
    return build_model(VMamba, "vmamba_tiny_s1l8", pretrained, kwargs, depths=(2, 2, 8, 2))


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, expansion 1, 20 blocks in stage 3: 49.0 M parameters."""
    return build_model(VMamba, "vmamba_small_s1l20", pretrained, kwargs, depths=(2, 2, 20, 2))


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, expansion 1, 20 blocks in stage 3: 86.6 M parameters."""
    sizes = {"depths": (2, 2, 20, 2), "dims": _BASE_DIMS}
    return build_model(VMamba, "vmamba_base_s1l20", pretrained, kwargs, **sizes)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, expansion 2, 5 blocks in stage 3: 30.7 M parameters."""
    sizes = {"depths": (2, 2, 5, 2), "expand": 2.0}
    return build_model(VMamba, "vmamba_tiny_s2l5", pretrained, kwargs, **sizes)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, expansion 2, 15 blocks in stage 3: 50.1 M parameters."""
    sizes = {"depths": (2, 2, 15, 2), "expand": 2.0}
    return build_model(VMamba, "vmamba_small_s2l15", pretrained, kwargs, **sizes)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, expansion 2, 15 blocks in stage 3: 88.6 M parameters."""
    sizes = {"depths": (2, 2, 15, 2), "dims": _BASE_DIMS, "expand": 2.0}
    return build_model(VMamba, "vmamba_base_s2l15", pretrained, kwargs, **sizes)


@register_model
def vmamba_tiny_s2l4(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T of the pre-release of 20 February 2024: 32.5 M parameters."""
    sizes = {"depths": (2, 2, 4, 2), "expand": 2.0, "gated": True}
    return build_model(VMamba, "vmamba_tiny_s2l4", pretrained, kwargs, **sizes)


@register_model
def vmamba_tiny_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-T of the first generation: 22.9 M parameters."""
    sizes = {"depths": (2, 2, 9, 2), **FIRST_GENERATION}
    return build_model(VMamba, "vmamba_tiny_v0", pretrained, kwargs, **sizes)


@register_model
def vmamba_small_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-S of the first generation: 44.4 M parameters."""
    sizes = {"depths": (2, 2, 27, 2), **FIRST_GENERATION}
    return build_model(VMamba, "vmamba_small_v0", pretrained, kwargs, **sizes)


@register_model
def vmamba_base_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-B of the first generation: 76.3 M parameters."""
    sizes = {"depths": (2, 2, 27, 2), "dims": _BASE_DIMS, **FIRST_GENERATION}
    return build_model(VMamba, "vmamba_base_v0", pretrained, kwargs, **sizes)


@register_model
def vmamba_tiny_m2(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T with Mamba-2's scan, 4 blocks in stage 3: 25.3 M parameters; no weights."""
    return build_model(VMamba, "vmamba_tiny_m2", pretrained, kwargs, depths=(2, 2, 4, 2), **_M2)


@register_model
def vmamba_small_m2(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S with Mamba-2's scan, 12 blocks in stage 3: 39.1 M parameters; no weights."""
    return build_model(VMamba, "vmamba_small_m2", pretrained, kwargs, depths=(2, 2, 12, 2), **_M2)


@register_model
def test_vmamba(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A very small VMamba for tests; no weights."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "mlp_ratio": 2.0}
    return build_model(VMamba, "test_vmamba", pretrained, kwargs, **sizes)


@register_model
def test_vmamba_m2(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """`test_vmamba` with Mamba-2's scan; no weights."""
    sizes: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64), "mlp_ratio": 2.0}
    sizes |= {**_M2, "d_state": 8}
    return build_model(VMamba, "test_vmamba_m2", pretrained, kwargs, **sizes)
