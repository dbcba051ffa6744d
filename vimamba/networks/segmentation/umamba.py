"""U-Mamba (Ma et al. 2024, arXiv:2401.04722): nnU-Net's residual U-Net with Mamba layers.

A Mamba layer replaces its input map: "bot" has one at the bottleneck, "enc" has them after encoder
stages, where the result is both skip and input of the next stage. Sizes come from an nnU-Net plan
in two or three dimensions.

Official code: https://github.com/bowang-lab/U-Mamba (Apache-2.0)
Sizes: N batch, C channels, L cells of a map.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.checkpoints import Rules, StateDict, rename_keys
from vimamba.layers import MambaMixer, join_branches, mamba_rules
from vimamba.layers.tracing import expect_size
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.scan_orders import num_paths, order_of_block
from vimamba.sizes import ImageSize, sides_of

Size = Sequence[int]

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_PLACES = ("bot", "enc")
# from nnU-Net's plans: minimum cells per side, maximum channels, and default patches
_FEWEST = 4
_MOST_CHANNELS = {2: 512, 3: 320}
_PATCH = {2: (320, 320), 3: (128, 128, 128)}
# arguments that define the stages
_STAGES = ("features_per_stage", "kernel_sizes", "strides")


class ResidualBlock(nn.Module):
    """Two convolutions with instance norms, and a shortcut."""

    def __init__(
        self, dim_in: int, dim: int, kernel_size: Size, stride: Size, *, projected: bool
    ) -> None:
        super().__init__()
        kernel, step = tuple(kernel_size), tuple(stride)
        conv, norm = _CONV[len(kernel)], _NORM[len(kernel)]
        padding = tuple(k // 2 for k in kernel)
        self.conv1 = conv(dim_in, dim, kernel, stride=step, padding=padding)  # type: ignore[arg-type]
        self.norm1 = norm(dim, affine=True)
        self.conv2 = conv(dim, dim, kernel, padding=padding)  # type: ignore[arg-type]
        self.norm2 = norm(dim, affine=True)
        self.shortcut = conv(dim_in, dim, 1, stride=step) if projected else nn.Identity()  # type: ignore[arg-type]
        self.act = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, ...) to (N, C, ...), smaller by the stride."""
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(y + self.shortcut(x))


def residual_blocks(
    dim_in: int, dim: int, depth: int, kernel_size: Size, stride: Size
) -> nn.Sequential:
    """Blocks, the first of which changes channels and size."""
    first = ResidualBlock(dim_in, dim, kernel_size, stride, projected=True)
    still = [1] * len(kernel_size)
    rest = (ResidualBlock(dim, dim, kernel_size, still, projected=False) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)


class MambaLayer(nn.Module):
    """One Mamba scan over a map, without a residual connection.

    Args:
        dim: Channels of a token.
        dims: Axes of the map.
        scan_order: Scan order of its cells.
        over_channels: Use the channels as tokens, in their own order, and the cells as channels;
            the map then has `dim` cells.
    """

    def __init__(self, dim: int, dims: int, *, scan_order: str, over_channels: bool) -> None:
        super().__init__()
        self.over_channels = over_channels
        self.scan_order = "raster" if over_channels else scan_order
        self.norm = nn.LayerNorm(dim)
        self.mixer = MambaMixer(dim, num_paths=num_paths(self.scan_order, dims))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape."""
        tokens = x.flatten(2)
        tokens = tokens if self.over_channels else tokens.transpose(1, 2)
        like = tokens if self.over_channels else x.movedim(1, -1)
        paths = torch.ops.vimamba.scan_paths(like, self.scan_order)
        tokens = self.mixer(self.norm(tokens), paths)
        tokens = tokens if self.over_channels else tokens.transpose(1, 2)
        # PyTorch 2.15's backward of a strided 1x1 convolution overruns memory for channels-last
        # maps
        return tokens.contiguous().view(x.shape)


class UpStage(nn.Module):
    """Upsample a map, concatenate the skip if there is one, convolve."""

    def __init__(
        self, dim_in: int, dim: int, depth: int, kernel_size: Size, stride: Size, *, skip: bool
    ) -> None:
        super().__init__()
        self.skip = skip
        self.upsample = nn.Upsample(scale_factor=tuple(float(s) for s in stride))
        self.project = _CONV[len(kernel_size)](dim_in, dim, 1)
        still = [1] * len(kernel_size)
        self.blocks = residual_blocks((1 + skip) * dim, dim, depth, kernel_size, still)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, C_in, ...) and a skip (N, C, ...), larger by the stride, to the skip's shape."""
        x = self.project(self.upsample(x))
        return self.blocks(torch.cat([x, skip], dim=1) if self.skip else x)


class UMamba(Segmenter):
    """U-Mamba from the entries of an nnU-Net plan.

    The coarser half of the stages gets one block, regardless of the plan, as published. In two
    dimensions every other stage of "enc" has a Mamba layer, including the last, and the last stage
    of the decoder has no skip; in three, all have them.

    Args:
        input_channels: Channels of the images.
        num_classes: Channels of the logits.
        features_per_stage: Channels of the encoder's stages.
        kernel_sizes, strides: Kernel sizes and strides of the encoder's stages, for each dimension;
            3 and 1, 2, 2, ... in two dimensions if None.
        n_conv_per_stage, n_conv_per_stage_decoder: Blocks per stage; 2 if None.
        mamba: "bot" or "enc".
        scan_order: One of `vimamba.list_scan_orders(dims=...)` for the images' dimensions, with
            parameters if it has any, or a sum; or a list of them, which the Mamba layers take in
            turn.
        patch_size: Image size for "enc". If a map has no more cells than channels, the scan runs
            over the channels, and images of other sizes are refused.
        deep_supervision: Auxiliary outputs of every stage of the decoder.
    """

    fewest_cells = 2
    checkpoints_parts = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        features_per_stage: Sequence[int] = (32, 64, 128, 256, 512, 512, 512),
        kernel_sizes: Sequence[Size] | None = None,
        strides: Sequence[Size] | None = None,
        n_conv_per_stage: Sequence[int] | None = None,
        n_conv_per_stage_decoder: Sequence[int] | None = None,
        mamba: str = "bot",
        scan_order: str | Sequence[str] = "raster",
        patch_size: Size | None = None,
        deep_supervision: bool = False,
    ) -> None:
        if mamba not in _PLACES:
            raise ValueError(f"mamba={mamba!r} is unknown; choose from {_PLACES}")
        dims, n = list(features_per_stage), len(features_per_stage)
        kernels = kernel_sizes or [(3, 3)] * n
        steps = strides or [(1, 1), *[(2, 2)] * (n - 1)]
        encoder_depths = n_conv_per_stage or [2] * n
        decoder_depths = n_conv_per_stage_decoder or [2] * (n - 1)
        if not len(kernels) == len(steps) == len(encoder_depths) == len(decoder_depths) + 1 == n:
            raise ValueError(
                f"features_per_stage={features_per_stage}, kernel_sizes={kernel_sizes}, "
                f"strides={strides}, n_conv_per_stage={n_conv_per_stage} and "
                f"n_conv_per_stage_decoder={n_conv_per_stage_decoder} must match in stages, "
                "with one less in the decoder"
            )
        cell = tuple(math.prod(axis) for axis in zip(*steps, strict=True))
        super().__init__(
            cell,
            num_classes=num_classes,
            in_chans=input_channels,
            pretrained_cfg={
                "architecture": f"umamba_{mamba}_{len(cell)}d",
                "input_size": (input_channels, *(patch_size or [5 * c for c in cell])),
                "license": "apache-2.0",
                "origin_url": "https://github.com/bowang-lab/U-Mamba",
                "paper_ids": "arXiv:2401.04722",
            },
        )
        encoder_depths = [d if s < math.ceil(n / 2) else 1 for s, d in enumerate(encoder_depths)]
        cut = math.ceil(n / 2)
        decoder_depths = [d if s < cut else 1 for s, d in enumerate(decoder_depths)]
        self.patch_size: tuple[int, ...] | None = None

        still = [1] * len(cell)
        self.stem = residual_blocks(input_channels, dims[0], encoder_depths[0], kernels[0], still)
        self.stages = nn.ModuleList(
            residual_blocks(dims[max(s - 1, 0)], dims[s], encoder_depths[s], kernels[s], steps[s])
            for s in range(n)
        )
        self.mambas = self._make_mambas(mamba, scan_order, dims, steps, patch_size)
        self.decoder = nn.ModuleList(
            UpStage(
                dims[s + 1],
                dims[s],
                decoder_depths[n - 2 - s],
                kernels[s],
                steps[s + 1],
                skip=s > 0 or len(cell) == 3,
            )
            for s in reversed(range(n - 1))
        )
        conv = _CONV[len(cell)]
        self.classifier = conv(dims[0], num_classes, 1)
        supervised = reversed(dims[1:-1]) if deep_supervision else ()
        self.aux_classifiers = nn.ModuleList(conv(dim, num_classes, 1) for dim in supervised)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=1e-2)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def _make_mambas(
        self,
        mamba: str,
        scan_order: str | Sequence[str],
        dims: list[int],
        steps: Sequence[Size],
        patch_size: Size | None,
    ) -> nn.ModuleList:
        n, axes = len(dims), len(self.cell)
        if mamba == "bot":
            order = order_of_block(scan_order, 0)
            last = MambaLayer(dims[-1], axes, scan_order=order, over_channels=False)
            return nn.ModuleList([*(nn.Identity() for _ in dims[1:]), last])
        if patch_size is None or any(p % c for p, c in zip(patch_size, self.cell, strict=True)):
            raise ValueError(
                f"patch_size={patch_size} must be a multiple of {self.cell} for mamba='enc'"
            )
        layers: list[nn.Module] = []
        made = 0
        size = list(patch_size)
        for s, (dim, step) in enumerate(zip(dims, steps, strict=True)):
            size = [side // stride for side, stride in zip(size, step, strict=True)]
            cells = math.prod(size)
            if len(size) == 2 and (s + n) % 2 == 0:
                layers.append(nn.Identity())
                continue
            over_channels = cells <= dim
            if over_channels:
                self.patch_size = tuple(patch_size)
            layers.append(
                MambaLayer(
                    min(cells, dim),
                    axes,
                    scan_order=order_of_block(scan_order, made),
                    over_channels=over_channels,
                )
            )
            made += 1
        return nn.ModuleList(layers)

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of the padded image; see `Segmenter.predict`."""
        if self.patch_size is not None:
            advice = "create a network for this patch_size or img_size, or use windows"
            x = expect_size(x, list(self.patch_size), advice)
        x = self.run(self.stem, x)
        skips: list[Tensor] = []
        for stage, mamba in zip(self.stages, self.mambas, strict=True):
            x = self.run(mamba, self.run(stage, x))
            skips.append(x)
        levels: list[Tensor] = []
        for up, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            x = self.run(up, x, skip)
            levels.append(x)
        outputs = [self.classifier(x)]
        if auxiliary and len(self.aux_classifiers):
            coarse = zip(self.aux_classifiers, levels[:-1], strict=True)
            outputs += reversed([classifier(level) for classifier, level in coarse])
        return outputs

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of the encoder."""
        parts = (self.stem, self.stages, self.mambas)
        return [parameter for part in parts for parameter in part.parameters()]

    def group_matcher(self, coarse: bool = False) -> Any:
        """The encoder's stages for layer-wise learning rates; the decoder is the last one."""
        return {"stem": r"^stem", "blocks": r"^(?:stages|mambas)\.(\d+)"}

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters, after the deepest layer is numbered."""
        return {r"mamba_layer\..*": None, **_OFFICIAL_KEYS}

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename the parameters of an official file, which has many of them twice."""
        last = len(self.stages) - 1
        state = {
            re.sub(r"^mamba_layer\.", f"encoder.mamba_layers.{last}.", key): value
            for key, value in state_dict.items()
        }
        state = join_branches(rename_keys(state, self.official_rules()))
        main = len(self.decoder) - 1
        return {
            re.sub(rf"^aux_classifiers\.{main}\.", "classifier.", key): value
            for key, value in state.items()
        }


def _block_rules(theirs: str, ours: str) -> dict[str, str]:
    leaf = r"\.(?P<leaf>weight|bias)"
    return {
        theirs + r"conv(?P<n>[12])(?:\.conv)?" + leaf: rf"{ours}conv\g<n>.\g<leaf>",
        theirs + r"(?:norm(?P<n>[12]))" + leaf: rf"{ours}norm\g<n>.\g<leaf>",
        theirs + r"conv(?P<n>[12])\.norm" + leaf: rf"{ours}norm\g<n>.\g<leaf>",
        theirs + r"conv3" + leaf: rf"{ours}shortcut.\g<leaf>",
    }


_MAMBA = r"encoder\.mamba_layers\.(\d+)\."
_OFFICIAL_KEYS: dict[str, str | None] = {
    # second names: a layer in its block, and the encoder in the decoder
    r".*\.all_modules\..*": None,
    r"decoder\.encoder\..*": None,
    **_block_rules(r"encoder\.stem\.(\d+)\.", r"stem.\1."),
    **_block_rules(r"encoder\.stages\.(\d+)\.(\d+)\.", r"stages.\1.\2."),
    **_block_rules(r"decoder\.stages\.(\d+)\.(\d+)\.", r"decoder.\1.blocks.\2."),
    r"decoder\.upsample_layers\.(\d+)\.conv\.(.*)": r"decoder.\1.project.\2",
    r"decoder\.seg_layers\.(\d+)\.(.*)": r"aux_classifiers.\1.\2",
    _MAMBA + r"norm\.(.*)": r"mambas.\1.norm.\2",
    **mamba_rules(_MAMBA + r"mamba\.", r"mambas.\1.mixer.", [""]),
}


def plan_stages(patch_size: Size, spacing: Sequence[float] | None = None) -> dict[str, Any]:
    """Stages for a patch, by nnU-Net's rules (Isensee et al. 2021, arXiv:1904.08128).

    Sides of eight cells or more are halved, those with the smallest cells first: an axis waits
    while its cells are at least twice as long. While waiting, kernels have one cell along it,
    afterwards three. Channels double, to at most 512 in two dimensions and 320 in three.

    Args:
        patch_size: Pixels or voxels along each axis.
        spacing: Spacing along each axis, in the same unit; isotropic if None.

    Returns:
        `features_per_stage`, `kernel_sizes` and `strides` of `UMamba`.

    Raises:
        ValueError: `spacing` is not one positive number for each axis.
    """
    axes = range(len(patch_size))
    lengths = [1.0 for _ in axes] if spacing is None else [float(length) for length in spacing]
    if len(lengths) != len(patch_size) or min(lengths) <= 0:
        raise ValueError(
            f"spacing={spacing} must be a positive number for each side of patch_size={patch_size}"
        )
    size, kernel = list(patch_size), [1 for _ in axes]
    strides, kernels = [[1 for _ in axes]], []
    while True:
        long = [a for a in axes if size[a] >= 2 * _FEWEST]
        halved = [a for a in long if lengths[a] < 2 * min(lengths[b] for b in long)]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * _FEWEST):
            break
        kernel = [3 if lengths[a] < 2 * min(lengths) else kernel[a] for a in axes]
        kernels.append(kernel)
        strides.append([2 if a in halved else 1 for a in axes])
        size = [math.ceil(side / step) for side, step in zip(size, strides[-1], strict=True)]
        lengths = [length * step for length, step in zip(lengths, strides[-1], strict=True)]
    kernels.append([3 for _ in axes])
    most = _MOST_CHANNELS[len(size)]
    features = [min(32 * 2**stage, most) for stage in range(len(strides))]
    return {"features_per_stage": features, "kernel_sizes": kernels, "strides": strides}


def _make(
    mamba: str,
    dims: int,
    *,
    num_classes: int,
    in_chans: int = 3,
    pretrained: bool = False,
    img_size: ImageSize | None = None,
    aux: bool = False,
    patch_size: Size | None = None,
    spacing: Sequence[float] | None = None,
    **kwargs: Any,
) -> UMamba:
    """A U-Mamba with the stages in `kwargs`, or else planned for the patch.

    The patch, the sides of `img_size` if `patch_size` is None, is rounded up to whole cells of
    the coarsest map. `kwargs` are additional arguments of `UMamba`.
    """
    name = f"umamba_{mamba}_{dims}d"
    if pretrained:
        raise ValueError(f"pretrained=True: there are no published weights of {name}")
    patch = patch_size or (sides_of(img_size, dims) if img_size else _PATCH[dims])
    if not isinstance(patch, Sequence) or len(patch) != dims:
        raise ValueError(f"patch_size={patch} of {name} must be {dims} sides")
    given = [key for key in _STAGES if key in kwargs]
    if given:
        if spacing is not None:
            raise ValueError(f"spacing={spacing} cannot be combined with {', '.join(given)}")
        n = len(kwargs[given[0]])
        steps = [[1] * dims, *([2] * dims for _ in range(n - 1))]
        stages = {"kernel_sizes": [[3] * dims] * n, "strides": steps, **kwargs}
    else:
        stages = {**plan_stages(patch, spacing), **kwargs}
    cell = [math.prod(axis) for axis in zip(*stages["strides"], strict=True)]
    whole = [max(-(-p // c), UMamba.fewest_cells) * c for p, c in zip(patch, cell, strict=True)]
    return UMamba(
        in_chans, num_classes, mamba=mamba, deep_supervision=aux, patch_size=whole, **stages
    )


@register_network(task="segmentation")
def umamba_bot_2d(**kwargs: Any) -> UMamba:
    """U-Mamba Bot for images of any size, planned for `patch_size`, `img_size` or 320 x 320 pixels.

    For 320 x 320 it has seven stages and 47.5 M parameters.
    """
    return _make("bot", 2, **kwargs)


@register_network(task="segmentation")
def umamba_enc_2d(**kwargs: Any) -> UMamba:
    """U-Mamba Enc for images of one size: `patch_size`, `img_size` or 320 x 320 pixels.

    The size is rounded up to whole cells. For 320 x 320 it has seven stages and 47.0 M parameters.
    """
    return _make("enc", 2, **kwargs)


@register_network(task="segmentation")
def umamba_bot_3d(**kwargs: Any) -> UMamba:
    """U-Mamba Bot for volumes of any size, planned for `patch_size`, `img_size` or 128^3 voxels.

    Give anisotropic voxels by `spacing`, such as (5.0, 0.8, 0.8) mm.
    """
    return _make("bot", 3, **kwargs)


@register_network(task="segmentation")
def umamba_enc_3d(**kwargs: Any) -> UMamba:
    """U-Mamba Enc for volumes of one size: `patch_size`, `img_size` or 128^3 voxels.

    The size is rounded up to whole cells. Give anisotropic voxels by `spacing`, such as (5.0, 0.8,
    0.8) mm.
    """
    return _make("enc", 3, **kwargs)
