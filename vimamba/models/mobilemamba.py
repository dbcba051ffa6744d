"""MobileMamba (He et al. 2024, arXiv:2411.15941): a light three-stage pyramid, strides 16 to 64.

A block's mixer splits the channels in three: a scan along rows and back in parallel with a
convolution of the map's Haar wavelet, a depthwise convolution, and an identity. What the block adds
to its input contains this input again, so the residual stream doubles in every block; the weights
are trained this way.

Official code: https://github.com/lewandofskee/MobileMamba (MIT). Its fallback for machines without
Triton mixes the images of a batch; here, as on a GPU, it does not.
Sizes: N batch, H and W image or map, C channels.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import SS2D, ConvNorm, NeckedHead, WaveletConv, split_paths, ss2d_rules
from vimamba.layers.given_paths import choose_paths
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts
from vimamba.timm_layers import ConvNormAct, LayerScale2d, SqueezeExcite

__all__ = ["MobileMamba"]


def make_stem(in_chans: int, dim: int, **dd: Any) -> nn.Module:
    """Four strided 3x3 convolutions: 1/16 of the image's side."""
    widths = [in_chans, *(dim // part for part in (8, 4, 2, 1))]
    convs = [
        ConvNormAct(widths[i], widths[i + 1], 3, stride=2, apply_act=i < 3, **dd) for i in range(4)
    ]
    return nn.Sequential(*convs)


class LocalBlock(nn.Module):
    """A depthwise convolution, then an MLP, each added to what it reads."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, dim, 3, groups=dim, **dd)
        self.mlp = nn.Sequential(ConvNormAct(dim, 2 * dim, **dd), ConvNorm(2 * dim, dim, **dd))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = x + self.conv(x)
        return x + self.mlp(x)


class Downsample(nn.Module):
    """Halve the grid in an inverted bottleneck, between two local blocks."""

    def __init__(self, dim_in: int, dim: int, **dd: Any) -> None:
        super().__init__()
        hidden = 4 * dim_in
        self.before = LocalBlock(dim_in, **dd)
        self.merge = nn.Sequential(
            ConvNormAct(dim_in, hidden, **dd),
            ConvNormAct(hidden, hidden, 3, stride=2, groups=hidden, **dd),
            SqueezeExcite(hidden, rd_ratio=0.25, **dd),
            ConvNorm(hidden, dim, **dd),
        )
        self.after = LocalBlock(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
        return self.after(self.merge(self.before(x)))


class ConvSS2D(SS2D):
    """SS2D with one state on maps, whose projections are convolutions with a norm."""

    def __init__(self, dim: int, *, scan_order: str, expand: float, **dd: Any) -> None:
        super().__init__(
            dim, scan_order=scan_order, expand=expand, gated=True, conv_bias=True, **dd
        )
        inner = self.x_proj.in_features
        self.in_proj = ConvNorm(dim, 2 * inner, **dd)
        self.out_proj = ConvNorm(inner, dim, **dd)

    def forward(self, x: Tensor, paths: Tensor | None = None) -> Tensor:
        """(N, C, H, W) to (N, C, H, W); `paths` as SS2D takes them."""
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        x, gate = self.in_proj(x).chunk(2, dim=1)
        x = self.act(self.conv(x)).permute(0, 2, 3, 1)
        chosen = choose_paths(x, self.scan_order, self.num_paths, paths)
        y = self.out_norm(self.mix(x.flatten(1, 2), chosen))
        y = y.transpose(1, 2).unflatten(2, (gate.shape[2], gate.shape[3]))
        return self.out_proj(y * self.act(gate))

    def reset_parameters(self) -> None:
        """Initialize the scan as the official code does, with small, uniform step sizes."""
        super().reset_parameters()
        for projection in self.scan.dt_proj:
            nn.init.uniform_(projection.weight, 0.0, 0.1)  # type: ignore[arg-type]
        nn.init.uniform_(self.scan.dt_bias, 0.0, 0.1)


class WaveletScan(WaveletConv):
    """A scan of the map, and a convolution of its wavelet."""

    def __init__(self, dim: int, kernel: int, *, scan_order: str, expand: float, **dd: Any) -> None:
        super().__init__(dim, kernel, **dd)
        self.mixer = ConvSS2D(dim, scan_order=scan_order, expand=expand, **dd)
        self.scale = LayerScale2d(dim, 1.0, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return self.scale(self.mixer(x)) + self.convolve(x)


class SplitMixer(nn.Module):
    """A scan on some channels, a depthwise convolution on others, and a projection of all.

    Args:
        dim: C.
        kernel: Side of the convolutions.
        widths: Numbers of scanned and of convolved channels.
        scan_order: Of the scan.
        expand: Inner channels of the scan over its channels.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        kernel: int,
        widths: tuple[int, int],
        *,
        scan_order: str,
        expand: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        wide, local = widths
        self.widths = [wide, local, dim - wide - local]
        scan = {"scan_order": scan_order, "expand": expand}
        self.wide = WaveletScan(wide, kernel, **scan, **dd)
        self.local = nn.Sequential(
            ConvNormAct(local, local, kernel, groups=local, **dd),
            ConvNorm(local, local, groups=local, **dd),
        )
        self.act = nn.ReLU()
        self.proj = ConvNorm(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        wide, local, rest = x.split(self.widths, dim=1)
        x = torch.cat([self.wide(wide), self.local(local), rest], dim=1)
        return self.proj(self.act(x))


class MobileBlock(nn.Module):
    """A mixer between two local blocks; the sum of all and the input is added to the input."""

    def __init__(self, dim: int, mixer: nn.Module, *, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.before = LocalBlock(dim, **dd)
        self.mixer = mixer
        self.after = LocalBlock(dim, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        y = self.before(x)
        y = self.after(y + self.mixer(y))
        return x + self.drop_path(y)


def split_widths(dim: int, wide: float, local: float) -> tuple[int, int]:
    """Numbers of scanned channels, the nearest multiple of 16, and of convolved channels.

    Raises:
        ValueError: One of them is 0.
    """
    scanned = (int(wide * dim) + 8) // 16 * 16
    convolved = min(int(local * dim), dim - scanned)
    if scanned < 1 or convolved < 1:
        raise ValueError(
            f"dims={dim} are too few for shares of {wide} and {local}, the first in multiples of 16"
        )
    return scanned, convolved


class MobileMamba(StagedBackbone):
    """MobileMamba backbone with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage, a multiple of 8 in the first.
        kernels: Side of the convolutions in each stage's mixers.
        scan_ratios: Share of the channels that each stage scans, in multiples of 16.
        conv_ratios: Share of the channels that each stage's mixers convolve only.
        expand: Inner channels of the scan over its channels.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        device, dtype: Device and dtype of the parameters.
    """

    unsupported = frozenset({"stage_norm"})
    dense: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (1, 2, 2),
        dims: tuple[int, ...] = (144, 272, 368),
        kernels: tuple[int, ...] = (7, 5, 3),
        scan_ratios: tuple[float, ...] = (0.8, 0.7, 0.6),
        conv_ratios: tuple[float, ...] = (0.2, 0.2, 0.3),
        expand: float = 2.0,
        scan_order: str | Sequence[str] = "bidirectional",
        **options: Any,
    ) -> None:
        def block(
            stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            widths = split_widths(dim, scan_ratios[stage], conv_ratios[stage])
            scan = {"scan_order": next(orders), "expand": expand}
            mixer = SplitMixer(dim, kernels[stage], widths, **scan, **dd)
            return MobileBlock(dim, mixer, drop_path=rate, **dd)

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=make_stem,
            block=block,
            downsample=Downsample,
            scan_order=scan_order,
            norm=nn.Identity,
            head=partial(NeckedHead, neck=nn.BatchNorm1d),
            stride=16,
            output_fmt="NCHW",
        )
        super().__init__(parts, **options)
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Initialize blocks so that they add only their input."""
        super().init_parameters()
        for module in self.modules():
            if isinstance(module, LocalBlock):
                nn.init.zeros_(module.mlp[1].bn.weight)  # type: ignore[arg-type]
            if isinstance(module, MobileBlock):
                for conv in (module.before.conv, module.mixer.proj, module.after.conv):
                    nn.init.zeros_(conv.bn.weight)  # type: ignore[arg-type]

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, split each path's parameters into an axis or a layer, make scales 1-D."""
        state = split_paths(super().from_official(state_dict), num_paths=2)
        ours: StateDict = {}
        for key, value in state.items():
            name = re.sub(r"^blocks(\d)\.(\d+)", _place, key)
            name = re.sub(r"\.c\.weight$", ".conv.weight", name)
            ours[name] = value.flatten() if name.endswith(".gamma") else value
        return ours


_BLOCK = r"(blocks\d+\.\d+)\."
_MIXER, _OURS = _BLOCK + r"mixer\.m\.attn\.", r"\1.mixer."


def _stem(match: re.Match[str]) -> str:
    return f"stem.{int(match[1]) // 2}.{match[2]}"


def _local(match: re.Match[str]) -> str:
    """Convolution and MLP of a block, which is numbered by its halves or in a sequence."""
    block, kind, number, layer, leaf = match.groups()
    half = ("before.", "after.")[int(number)] if kind else ""
    is_conv = kind == "dw" or (not kind and number == "0")
    return f"{block}.{half}" + (f"conv.{leaf}" if is_conv else f"mlp.{int(layer) - 1}.{leaf}")


def _merge(match: re.Match[str]) -> str:
    layers = {"conv1": 0, "conv2": 1, "se": 2, "conv3": 3}
    return f"{match[1]}.{layers[match[2]]}.{match[3]}"


def _place(match: re.Match[str]) -> str:
    """Official stages after the first start with three modules that halve the grid."""
    stage, number = int(match[1]) - 1, int(match[2])
    if stage and number < 3:
        return f"stages.{stage}.downsample.{('before', 'merge', 'after')[number]}"
    return f"stages.{stage}.blocks.{number - (3 if stage else 0)}"


RULES = {
    r"patch_embed\.(\d)\.(.*)": _stem,
    _BLOCK + r"(?:(dw|ffn))?([01])\.m\.(?:pw(\d)\.)?(.*)": _local,
    _BLOCK + r"(conv\d|se)\.(.*)": _merge,
    **ss2d_rules(_MIXER + r"global_op\.global_atten\.", _OURS + "wide.mixer."),
    _MIXER + r"global_op\.base_scale\.weight": _OURS + "wide.scale.gamma",
    _MIXER + r"global_op\.wavelet_convs\.\d\.(.*)": _OURS + r"wide.conv.\2",
    _MIXER + r"global_op\.wavelet_scale\.\d\.weight": _OURS + "wide.conv_scale.gamma",
    _MIXER + r"global_op\.i?wt_filter": None,
    _MIXER + r"local_op\.dwconv3x3\.(.*)": _OURS + r"local.0.conv.\2",
    _MIXER + r"local_op\.bn1\.(.*)": _OURS + r"local.0.bn.\2",
    _MIXER + r"local_op\.dwconv1x1\.(.*)": _OURS + r"local.1.conv.\2",
    _MIXER + r"local_op\.bn2\.(.*)": _OURS + r"local.1.bn.\2",
    _MIXER + r"proj\.\d\.(.*)": _OURS + r"proj.\2",
    r"head\.bn\.(.*)": r"head.neck.\1",
    r"head\.l\.(.*)": r"head.fc.\1",
}
# size of the images, top-1 accuracy, and where the weights are: after 300 epochs, and after 1000
# with a teacher
_RELEASED = {
    "mobilemamba_t2.e300_in1k": (192, 71.5, "1LXh5wjVEUu5Kj1foclC9zmlKsy7JpMQ-"),
    "mobilemamba_t2.e1000_dist_in1k": (192, 76.9, "14UUeEeN62a1jo5qit-m0yChQnNU8JWQG"),
    "mobilemamba_t4.e300_in1k": (192, 76.1, "17-5Q93_cEhBYMDzWTq4sDcc4_c_ezwpd"),
    "mobilemamba_t4.e1000_dist_in1k": (192, 78.9, "12e1RKJEYDWVjOZuQLycjOUkA5PqCUnwu"),
    "mobilemamba_s6.e300_in1k": (224, 78.0, "13en_zNB2wuHmnHKZMUQDe4KizlaTCHbP"),
    "mobilemamba_s6.e1000_dist_in1k": (224, 80.7, "1ujVeWpoICjioRF0aB7PD1fadM4PGFRfl"),
    "mobilemamba_b1.e300_in1k": (256, 79.9, "1ODO1XM2luMfczbDLJxHrEl-ie7yUscAC"),
    "mobilemamba_b1.e1000_dist_in1k": (256, 82.2, "15rBhYky_f7jNSknXujuwQESaIkiTBAR1"),
    "mobilemamba_b2.e300_in1k": (384, 81.6, "1tJJZqeP09D_IAKKFuQtJQOYm4eNGjr1r"),
    "mobilemamba_b2.e1000_dist_in1k": (384, 83.3, "1KuleL6Fi84zkjIhkRFbR4lqGa2iu6bOp"),
    "mobilemamba_b4.e300_in1k": (512, 82.5, "1MiGLHSldK2JpbQEe-7VlmFsaCdugDnYR"),
    "mobilemamba_b4.e1000_dist_in1k": (512, 83.6, "1KevdesGm8Pb4fEbgZ5JY4FMy9IQgYbiZ"),
}
register_family(
    "MobileMamba", MobileMamba, RULES, top1={name: top1 for name, (_, top1, _) in _RELEASED.items()}
)

default_cfgs = make_cfgs(
    {
        **{
            name: {"by_hand": f"https://drive.google.com/file/d/{file}", "size": size}
            for name, (size, _, file) in _RELEASED.items()
        },
        "test_mobilemamba.untrained": {"size": 96},
    },
    license="mit",
    cell=64,
    first_conv="stem.0.conv",
    classifier="head.fc",
    origin_url="https://github.com/lewandofskee/MobileMamba",
    paper_name="MobileMamba: Lightweight Multi-Receptive Visual Mamba Network",
    paper_ids="arXiv:2411.15941",
)
_B: dict[str, Any] = {"depths": (2, 3, 2), "dims": (200, 376, 448)}


@register_model
def mobilemamba_t2(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-T2, for images of 192 pixels: 8.8 M parameters."""
    return build_model(MobileMamba, "mobilemamba_t2", pretrained, kwargs)


@register_model
def mobilemamba_t4(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-T4, for images of 192 pixels: 14.1 M parameters."""
    return build_model(MobileMamba, "mobilemamba_t4", pretrained, kwargs, dims=(176, 368, 448))


@register_model
def mobilemamba_s6(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-S6: 15.0 M parameters."""
    return build_model(MobileMamba, "mobilemamba_s6", pretrained, kwargs, dims=(192, 384, 448))


@register_model
def mobilemamba_b1(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B1, for images of 256 pixels: 17.1 M parameters."""
    return build_model(MobileMamba, "mobilemamba_b1", pretrained, kwargs, **_B)


@register_model
def mobilemamba_b2(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B1 with weights for images of 384 pixels: 17.1 M parameters."""
    return build_model(MobileMamba, "mobilemamba_b2", pretrained, kwargs, **_B)


@register_model
def mobilemamba_b4(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B1 with weights for images of 512 pixels: 17.1 M parameters."""
    return build_model(MobileMamba, "mobilemamba_b4", pretrained, kwargs, **_B)


@register_model
def test_mobilemamba(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """A very small MobileMamba for tests; no weights."""
    sizes = {"depths": (1, 2, 1), "dims": (24, 28, 40), "expand": 1.0}
    return build_model(MobileMamba, "test_mobilemamba", pretrained, kwargs, **sizes)
