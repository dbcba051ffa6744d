"""MambaMorph (Guo et al. 2024, arXiv:2401.13934) and VMambaMorph (Wang et al., arXiv:2404.05105).

TransMorph's architecture with one scan per scale instead of windows: both images, or their
features, are cut into patches of four cells, mixed and merged over three scales, and decoded by
convolutions to a velocity, whose integral aligns the moving image to the fixed one.

    MambaMorph     Mamba in raster order, replacing the map: the layer has no residual connection
    VMambaMorph    VMamba's block in four directions; its recursive form aligns twice

Official code: https://github.com/Guo-Stone/MambaMorph (MIT) and
https://github.com/ziyangwang007/VMambaMorph (Apache-2.0). Neither published weights. Details that
their files depend on are kept; these are not, and no file depends on them:

* Their blocks before the last one of a scale have no effect, so ours has none, and their parameters
  in a file are skipped. Coordinate grids are computed for the given images.
* VMambaMorph treats every grid as a cube, and its merge is not the inverse of its scan: to a cell
  (i, j, k) it adds the results of two of the four directions at (k, i, j). On cubes ours does that
  too (`rotated_merge`); on other grids, where theirs fails or is wrong, each cell gets its own
  results.

Sizes: N batch, C channels, n axes, *grid the axes of a map.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.checkpoints import Rules, StateDict, rename_keys
from vimamba.layers import (
    GATED_SS2D,
    SS2D,
    MambaMixer,
    VSSBlock,
    join_branches,
    mamba_rules,
    resize,
    split_paths,
    ss2d_rules,
)
from vimamba.networks.registration.registrar import Registrar, Registration
from vimamba.networks.registration.warping import compose, integrate_velocity, resize_flow, warp
from vimamba.networks.registry import register_network
from vimamba.scan_orders import num_paths, order_of_block

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL: dict[int, Any] = {2: F.avg_pool2d, 3: F.avg_pool3d}
_PATCH, _SCALES = 4, 3
_FEATURES = 16
# offsets of a patch merging along each axis; their order is part of the weights
_OFFSETS = {
    2: ((0, 0), (1, 0), (0, 1), (1, 1)),
    3: ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)),
}


def sine_positions(grid: Sequence[int], dim: int, like: Tensor) -> Tensor:
    """(*grid, C): sines, then cosines, of every axis's index; a share of the channels per axis."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    share = 2 * -(-dim // (2 * len(grid)))
    steps = torch.arange(0, share, 2, dtype=dtype, device=like.device)
    frequency = 1.0 / 10000.0 ** (steps / share)
    codes = []
    for axis, side in enumerate(grid):
        angle = torch.arange(side, dtype=dtype, device=like.device)[:, None] * frequency
        code = torch.cat([angle.sin(), angle.cos()], dim=-1)
        shape = [-1 if a == axis else 1 for a in range(len(grid))]
        codes.append(code.view(*shape, share).expand(*grid, share))
    return torch.cat(codes, dim=-1)[..., :dim].to(like.dtype)


class PatchEmbed(nn.Module):
    """Patches to tokens, and a norm."""

    def __init__(self, in_chans: int, dim: int, dims: int) -> None:
        super().__init__()
        self.proj = _CONV[dims](in_chans, dim, _PATCH, stride=_PATCH)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *size) to (N, *grid, C)."""
        return self.norm(self.proj(x).movedim(1, -1))


class PatchMerging(nn.Module):
    """Concatenate neighbors along all axes, norm, project (Swin, arXiv:2103.14030)."""

    def __init__(self, dim: int, dims: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2**dims * dim)
        self.reduction = nn.Linear(2**dims * dim, 2 * dim, bias=False)
        self.offsets = _OFFSETS[dims]

    def forward(self, x: Tensor) -> Tensor:
        """(N, *grid, C) to (N, *half, 2 C)."""
        parts = [x[(slice(None), *(slice(o, None, 2) for o in offset))] for offset in self.offsets]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class MambaLayer(nn.Module):
    """A norm and Mamba, without a residual connection."""

    def __init__(self, dim: int, dims: int, scan_order: str) -> None:
        super().__init__()
        self.scan_order = scan_order
        self.norm = nn.LayerNorm(dim)
        self.mixer = MambaMixer(dim, num_paths=num_paths(scan_order, dims))

    def forward(self, x: Tensor) -> Tensor:
        """(N, *grid, C) to the same shape."""
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order)
        return self.mixer(self.norm(x).flatten(1, -2), paths).view(x.shape)


class RotatingSS2D(SS2D):
    """An SS2D that sums the paths of cubes as in VMambaMorph's code; see above."""

    def __init__(self, dim: int, *, rotated_merge: bool, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        self.rotated_merge = rotated_merge

    def mix_grid(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens on their grid (N, *grid, D) to (N, L, D)."""
        grid = x.shape[1:-1]
        if not self.rotated_merge or len(grid) != 3 or len(set(grid)) > 1:
            return super().mix_grid(x, paths)
        u = x.flatten(1, -2)
        y = self.scan.mix(u, self.x_proj(u), paths, merge=False)
        turned = y[:, 1::2].sum(1).unflatten(1, grid)
        return y[:, ::2].sum(1) + turned.permute(0, 2, 3, 1, 4).flatten(1, 3)


class VMambaLayer(nn.Module):
    """A norm and VMamba's block, whose residual connection starts after the norm."""

    def __init__(self, dim: int, dims: int, scan_order: str, rotated_merge: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        kind = {"dims": dims, "rotated_merge": rotated_merge, **GATED_SS2D}
        mixer = RotatingSS2D(dim, scan_order=scan_order, **kind)
        self.block = VSSBlock(dim, mixer, mlp_ratio=0.0, drop_path=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *grid, C) to the same shape."""
        return self.block(self.norm(x))


class ConvNormAct(nn.Sequential):
    """Convolution, instance norm without parameters, leaky ReLU."""

    def __init__(self, dim_in: int, dim: int, dims: int) -> None:
        conv = _CONV[dims](dim_in, dim, 3, padding=1, bias=False)
        super().__init__(conv, _NORM[dims](dim), nn.LeakyReLU(0.01, inplace=True))


class UpBlock(nn.Module):
    """Upsample by 2, concatenate the skip, convolve twice."""

    def __init__(self, dim_in: int, dim_skip: int, dim: int, dims: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(dim_in + dim_skip, dim, dims)
        self.conv2 = ConvNormAct(dim, dim, dims)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, C_in, *grid) and (N, C_skip, *doubled) to (N, C, *doubled)."""
        x = torch.cat([resize(x, skip.shape[2:]), skip], dim=1)
        return self.conv2(self.conv1(x))


def _conv_act(dim_in: int, dim: int, dims: int, stride: int = 1) -> nn.Sequential:
    conv = _CONV[dims](dim_in, dim, 3, stride=stride, padding=1)
    nn.init.kaiming_normal_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.LeakyReLU(0.2, inplace=True))


class FeatureExtractor(nn.Module):
    """A small U-Net applied to both images before they are compared."""

    def __init__(self, in_chans: int, dims: int) -> None:
        super().__init__()
        dim = _FEATURES
        self.pool = _MAX_POOL[dims]
        self.encoder = nn.ModuleList(_conv_act(c, dim, dims) for c in (in_chans, dim))
        self.decoder = nn.ModuleList(_conv_act(c, dim, dims) for c in (dim, 2 * dim))
        self.remaining = nn.ModuleList(_conv_act(c, dim, dims) for c in (2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *grid) to (N, 16, *grid)."""
        skips = []
        for conv in self.encoder:
            skips.append(conv(x))
            x = self.pool(skips[-1], 2)
        for conv in self.decoder:
            x = conv(x)
            skip = skips.pop()
            x = torch.cat([resize(x, skip.shape[2:], mode="nearest"), skip], dim=1)
        for conv in self.remaining:
            x = conv(x)
        return x


class MambaMorph(Registrar):
    """MambaMorph.

    Args:
        in_chans: Channels of either image.
        embed_dim: Channels of the finest scale; each next one has twice as many.
        head_dim: Channels at full resolution.
        features: Compare features of a small U-Net instead of the images.
        scan_order: One of `vimamba.list_scan_orders(dims=...)` for the images' dimensions, with
            parameters if it has any, or a sum; or a list of them, which the scales take in turn.
        passes: Number of passes; each pass starts from the image moved by the previous one. More
            than one needs `features`.
        integration_steps: Squarings that turn the velocity into a displacement; 0 uses the velocity
            as the displacement, which then may fold.
        half_resolution: Integrate at half the resolution, as in VoxelMorph (arXiv:1809.05231): an
            eighth of the work and memory in three dimensions, and smoother fields.
        dims: Axes of the images, 2 or 3.
    """

    architecture: ClassVar[str] = "mambamorph"
    url: ClassVar[str] = "https://github.com/Guo-Stone/MambaMorph"
    license_name: ClassVar[str] = "mit"
    paper: ClassVar[str] = "arXiv:2401.13934"

    def __init__(
        self,
        in_chans: int = 1,
        *,
        embed_dim: int = 96,
        head_dim: int = 16,
        features: bool = False,
        scan_order: str | Sequence[str] = "raster",
        passes: int = 1,
        integration_steps: int = 7,
        half_resolution: bool = False,
        dims: int = 3,
        **layer: Any,
    ) -> None:
        if dims not in _CONV:
            raise ValueError(f"dims={dims} must be 2 or 3")
        if passes < 1 or (passes > 1 and not features):
            raise ValueError(f"passes={passes} must be at least 1, and 1 without features=True")
        if integration_steps < 0:
            raise ValueError(f"integration_steps={integration_steps} must be at least 0")
        super().__init__(
            (_PATCH * 2 ** (_SCALES - 1),) * dims,
            in_chans=in_chans,
            pretrained_cfg={
                "architecture": self.architecture,
                "input_size": (in_chans, *[128] * dims),
                "license": self.license_name,
                "origin_url": self.url,
                "paper_ids": self.paper,
            },
        )
        self.passes, self.integration_steps = passes, integration_steps
        self.squarings = integration_steps if passes == 1 else 0
        self.half_resolution = half_resolution
        inner = 2 * (_FEATURES if features else in_chans)
        widths = [embed_dim * 2**i for i in range(_SCALES)]
        self.extractor = FeatureExtractor(in_chans, dims) if features else None
        read_out = (_conv_act(_FEATURES, 8, dims, stride=2), _conv_act(8, 3, dims))
        self.read_out = nn.Sequential(*read_out) if features else None
        self.patch_embed = PatchEmbed(inner, embed_dim, dims)
        self.stages = nn.ModuleList(
            self.make_layer(dim, dims, order_of_block(scan_order, i), **layer)
            for i, dim in enumerate(widths)
        )
        self.merges = nn.ModuleList(PatchMerging(dim, dims) for dim in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in widths)
        self.pool = _AVG_POOL[dims]
        self.half_skip = ConvNormAct(inner, embed_dim // 2, dims)
        self.full_skip = ConvNormAct(inner, head_dim, dims)
        skips = [*reversed(widths[:-1]), embed_dim // 2, head_dim]
        steps = zip([widths[-1], *skips], skips, strict=False)
        self.ups = nn.ModuleList(UpBlock(a, b, b, dims) for a, b in steps)
        self.flow = _CONV[dims](head_dim, dims, 3, padding=1)
        # the initial displacements are nearly zero
        nn.init.normal_(self.flow.weight, std=1e-5)
        nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]

    @staticmethod
    def make_layer(dim: int, dims: int, scan_order: str) -> nn.Module:
        """The layer that mixes the tokens of a scale."""
        return MambaLayer(dim, dims, scan_order)

    def velocity(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Two images or their features (N, C, *grid) to a velocity (N, n, *grid), cells."""
        pair = torch.cat([moving, fixed], dim=1)
        x = self.patch_embed(pair)
        x = x + sine_positions(x.shape[1:-1], x.shape[-1], x)
        half = self.half_skip(self.pool(pair, kernel_size=3, stride=2, padding=1))
        skips = [self.full_skip(pair), half]
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = stage(x)
            skips.append(norm(x).movedim(-1, 1))
            if i < len(self.merges):
                x = self.merges[i](x)
        x = skips.pop()
        for up in self.ups:
            x = up(x, skips.pop())
        return self.flow(x)

    def integrate(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """A velocity at full resolution to the displacement, and the integrated velocity."""
        if not self.integration_steps:
            return velocity, velocity
        if not self.half_resolution:
            return integrate_velocity(velocity, self.integration_steps), velocity
        velocity = resize_flow(velocity, 0.5)
        return resize_flow(integrate_velocity(velocity, self.integration_steps), 2.0), velocity

    def register(self, moving: Tensor, fixed: Tensor) -> Registration:
        """See `Registrar.register`."""
        if self.extractor is None or self.read_out is None:
            flow, velocity = self.integrate(self.velocity(moving, fixed))
            return Registration(warp(moving, flow), flow, velocity)
        source, target = self.extractor(moving), self.extractor(fixed)
        flow, velocity = self.integrate(self.velocity(source, target))
        for _ in range(self.passes - 1):
            source = self.extractor(warp(moving, flow))
            more, velocity = self.integrate(self.velocity(source, target))
            flow = compose(flow, more)
        features = torch.cat([self.read_out(source), self.read_out(target)], dim=1)
        return Registration(warp(moving, flow), flow, velocity, features)

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return {**_OFFICIAL_KEYS, **_MAMBA_KEYS}

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename the parameters of an official file."""
        return join_branches(rename_keys(state_dict, self.official_rules()))


class VMambaMorph(MambaMorph):
    """VMambaMorph.

    Args:
        in_chans: Channels of either image.
        scan_order: As in `MambaMorph`.
        rotated_merge: On cubes, sum the paths as in the official code, which adds half of their
            results to other cells: for files trained that way. False adds each result to its own
            cell, as on all other grids.
        **kwargs: Additional arguments of `MambaMorph`.
    """

    architecture = "vmambamorph"
    url = "https://github.com/ziyangwang007/VMambaMorph"
    license_name = "apache-2.0"
    paper = "arXiv:2404.05105"

    def __init__(
        self,
        in_chans: int = 1,
        *,
        scan_order: str | Sequence[str] = (
            "raster + transposed + raster(reverse=True) + transposed(reverse=True)"
        ),
        rotated_merge: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_chans, scan_order=scan_order, rotated_merge=rotated_merge, **kwargs)

    @staticmethod
    def make_layer(  # type: ignore[override]
        dim: int, dims: int, scan_order: str, rotated_merge: bool
    ) -> nn.Module:
        """The layer that mixes the tokens of a scale."""
        return VMambaLayer(dim, dims, scan_order, rotated_merge)

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return {**_OFFICIAL_KEYS, **_VMAMBA_KEYS}

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename the parameters of an official file, using the last block of each scale."""
        last: dict[str, int] = {}
        blocks = {key: m for key in state_dict if (m := re.match(_BLOCK, key))}
        for m in blocks.values():
            last[m[1]] = max(last.get(m[1], 0), int(m[2]))
        kept = {
            key: value
            for key, value in state_dict.items()
            if key not in blocks or int(blocks[key][2]) == last[blocks[key][1]]
        }
        return split_paths(rename_keys(kept, self.official_rules()))


_BLOCK = r"transformer\.layers\.(\d)\.mamba\.(\d+)\."
_OFFICIAL_KEYS: Rules = {
    # coordinate grids for the size of the training volumes
    r"(?:spatial_trans|integrate\.transformer)\.grid": None,
    r"feature_extractor\.(encoder|decoder)\.(\d)\.0\.main\.(.*)": r"extractor.\1.\2.0.\3",
    r"feature_extractor\.remaining\.(\d)\.main\.(.*)": r"extractor.remaining.\1.0.\2",
    r"read_out_head\.(\d)\.main\.(.*)": r"read_out.\1.0.\2",
    r"transformer\.patch_embed\.(.*)": r"patch_embed.\1",
    r"transformer\.layers\.(\d)\.norm\.(.*)": r"stages.\1.norm.\2",
    r"transformer\.layers\.(\d)\.downsample\.(.*)": r"merges.\1.\2",
    r"transformer\.norm(\d)\.(.*)": r"norms.\1.\2",
    r"up(\d)\.(conv\d)\.0\.weight": lambda m: f"ups.{int(m[1]) - 1}.{m[2]}.0.weight",
    r"c1\.0\.weight": "half_skip.0.weight",
    r"c2\.0\.weight": "full_skip.0.weight",
    r"reg_head\.0\.(.*)": r"flow.\1",
}
_MAMBA_KEYS: Rules = {
    **mamba_rules(r"transformer\.layers\.(\d)\.mamba\.", r"stages.\1.mixer.", [""])
}
_VMAMBA_KEYS: Rules = {
    _BLOCK + r"ln_1\.(.*)": r"stages.\1.block.norm1.\3",
    _BLOCK + r"self_attention\.conv3d\.(.*)": r"stages.\1.block.mixer.conv.\3",
    **ss2d_rules(_BLOCK + r"self_attention\.", r"stages.\1.block.mixer."),
}


@register_network(task="registration")
def mambamorph(*, in_chans: int = 1, **kwargs: Any) -> MambaMorph:
    """MambaMorph on the images themselves: 7.3 M parameters, for volumes of any size."""
    return MambaMorph(in_chans, **kwargs)


@register_network(task="registration")
def mambamorph_feat(*, in_chans: int = 1, **kwargs: Any) -> MambaMorph:
    """MambaMorph on features, as in the paper: 7.6 M parameters, for volumes of any size."""
    return MambaMorph(in_chans, features=True, **kwargs)


@register_network(task="registration")
def mambamorph_ori(*, in_chans: int = 1, **kwargs: Any) -> MambaMorph:
    """MambaMorph without integration, whose fields may fold: 7.3 M parameters."""
    return MambaMorph(in_chans, integration_steps=0, **kwargs)


@register_network(task="registration")
def vmambamorph(*, in_chans: int = 1, **kwargs: Any) -> VMambaMorph:
    """VMambaMorph on the images themselves: 7.7 M parameters, for volumes of any size."""
    return VMambaMorph(in_chans, **kwargs)


@register_network(task="registration")
def vmambamorph_feat(*, in_chans: int = 1, **kwargs: Any) -> VMambaMorph:
    """VMambaMorph on features: 8.0 M parameters, for volumes of any size."""
    return VMambaMorph(in_chans, features=True, **kwargs)


@register_network(task="registration")
def vmambamorph_rec(*, in_chans: int = 1, **kwargs: Any) -> VMambaMorph:
    """VMambaMorph on features with two passes: 8.0 M parameters."""
    return VMambaMorph(in_chans, features=True, passes=2, **kwargs)
