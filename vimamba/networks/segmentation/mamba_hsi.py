"""MambaHSI (Li et al. 2024, IEEE TGRS): classifies every pixel of a hyperspectral cube.

A block scans over all pixels of the cube and, in every pixel, over groups of channels; it computes
a weighted sum of both. The cube is read as a whole: windows would cut the long sequence that the
method relies on.

Official code: https://github.com/li-yapeng/MambaHSI (no license, no weights). It scans over the
pixels of a whole batch as one sequence, so the prediction for an image depends on the other images;
here every image is a separate sequence, unless `joint_sequence` is set.

Sizes: N batch, C channels, H and W map, G groups of channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.checkpoints import Rules, StateDict, rename_keys
from vimamba.layers import MambaMixer, join_branches, mamba_rules
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.scan_orders import num_paths, order_of_block

BRANCHES = ("both", "spatial", "spectral")


class SpatialBranch(nn.Module):
    """Mix all pixels of an image, each with all of its channels.

    Args:
        dim: C.
        norm_groups: Groups of the norm after the mixer.
        residual: Add the input.
        scan_order: Scan order of the pixels.
        joint_sequence: Read the images of a batch as one, stacked from top to bottom.
    """

    def __init__(
        self, dim: int, *, norm_groups: int, residual: bool, scan_order: str, joint_sequence: bool
    ) -> None:
        super().__init__()
        self.residual, self.scan_order = residual, scan_order
        self.joint_sequence = joint_sequence
        self.mixer = MambaMixer(dim, num_paths=num_paths(scan_order))
        self.norm = nn.GroupNorm(norm_groups, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        tokens = x.permute(0, 2, 3, 1)
        grid = tokens.flatten(0, 1)[None] if self.joint_sequence else tokens
        paths = torch.ops.vimamba.scan_paths(grid, self.scan_order)
        mixed = self.mixer(grid.flatten(1, 2), paths).reshape(tokens.shape).permute(0, 3, 1, 2)
        mixed = F.silu(self.norm(mixed))
        return x + mixed if self.residual else mixed


class SpectralBranch(nn.Module):
    """Mix G groups of neighboring channels in every pixel.

    Args:
        dim: C; the last group is padded with zeros.
        groups: G.
        norm_groups: Groups of the norm after the mixer.
        residual: Add the input.
    """

    def __init__(self, dim: int, *, groups: int, norm_groups: int, residual: bool) -> None:
        super().__init__()
        self.groups, self.residual = groups, residual
        self.width = -(-dim // groups)
        self.mixer = MambaMixer(self.width, num_paths=1)
        self.norm = nn.GroupNorm(norm_groups, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        pixels = x.permute(0, 2, 3, 1)
        tokens = F.pad(pixels, (0, self.groups * self.width - x.shape[1]))
        tokens = tokens.reshape(-1, self.groups, self.width)
        paths = torch.ops.vimamba.scan_paths(tokens, "raster", [self.groups])
        mixed = self.mixer(tokens, paths).reshape(*pixels.shape[:3], -1)[..., : x.shape[1]]
        mixed = F.silu(self.norm(mixed.permute(0, 3, 1, 2)))
        return x + mixed if self.residual else mixed


class BothBranches(nn.Module):
    """The sum of both branches with learned weights, and of the input.

    Args:
        spatial: The branch over pixels.
        spectral: The branch over channels.
        weighted: Learn the weights; a plain sum if False.
        residual: Add the input.
    """

    def __init__(
        self, spatial: nn.Module, spectral: nn.Module, *, weighted: bool, residual: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.weights = nn.Parameter(torch.ones(2, dtype=None, device=None)) if weighted else None
        self.spatial, self.spectral = spatial, spectral

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        spatial, spectral = self.spatial(x), self.spectral(x)
        if self.weights is None:
            mixed = spatial + spectral
        else:
            weights = self.weights.softmax(dim=0)
            mixed = spatial * weights[0] + spectral * weights[1]
        return x + mixed if self.residual else mixed


class MambaHSI(Segmenter):
    """MambaHSI: three blocks, each at half the resolution of the previous one.

    It takes any size of at least 4 pixels per side; smaller cubes are padded with zeros. Odd sides
    are rounded down when the map is halved, as in the official code.

    Args:
        num_classes: Channels of the logits.
        in_chans: Bands of the cube.
        dim: C.
        head_dim: Channels before the classifier.
        branches: "both", "spatial" or "spectral".
        groups: G.
        norm_groups: Of every norm.
        scan_order: Of the pixels: one of `vimamba.list_scan_orders(dims=2)`, with parameters if it
            has any, or a sum; or a list of them, which the blocks take by turns.
        weighted: Learn the weights of the branches.
        residual: Add every block's input.
        joint_sequence: Read all images of a batch as one sequence, as the official code does.
        architecture: Registered name.
    """

    # cells of one pixel; at least four, so that two halvings leave one
    fewest_cells = 4

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        *,
        dim: int = 128,
        head_dim: int = 128,
        branches: str = "both",
        groups: int = 4,
        norm_groups: int = 4,
        scan_order: str | Sequence[str] = "raster",
        weighted: bool = True,
        residual: bool = True,
        joint_sequence: bool = False,
        architecture: str = "mambahsi",
    ) -> None:
        if branches not in BRANCHES:
            raise ValueError(f"branches={branches!r} is unknown; choose from {BRANCHES}")
        super().__init__(
            (1, 1),
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg={
                "architecture": architecture,
                "input_size": (in_chans, 256, 256),
                "origin_url": "https://github.com/li-yapeng/MambaHSI",
                "paper_name": "MambaHSI: Spatial-Spectral Mamba for Hyperspectral Image "
                "Classification",
            },
        )

        def make_block(number: int) -> nn.Module:
            shared = {"norm_groups": norm_groups, "residual": residual}
            order = order_of_block(scan_order, number)
            spatial = {"scan_order": order, "joint_sequence": joint_sequence, **shared}
            if branches == "spatial":
                return SpatialBranch(dim, **spatial)
            spectral = SpectralBranch(dim, groups=groups, **shared)
            if branches == "spectral":
                return spectral
            both = SpatialBranch(dim, **spatial), spectral
            return BothBranches(*both, weighted=weighted, residual=residual)

        self.embed = nn.Sequential(
            nn.Conv2d(in_chans, dim, 1), nn.GroupNorm(norm_groups, dim), nn.SiLU()
        )
        self.blocks = nn.ModuleList(make_block(number) for number in range(3))
        self.head = nn.Sequential(
            nn.Conv2d(dim, head_dim, 1), nn.GroupNorm(norm_groups, head_dim), nn.SiLU()
        )
        self.classifier = nn.Conv2d(head_dim, num_classes, 1)

    def forward_cells(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to the logits of the last block, (N, num_classes, H // 4, W // 4)."""
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block(F.avg_pool2d(x, 2) if i else x)
        return self.classifier(self.head(x))

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of all pixels, resized with aligned corners; see `Segmenter.predict`."""
        size = x.shape[2], x.shape[3]
        cells = self.forward_cells(x)
        return [F.interpolate(cells, size=size, mode="bilinear", align_corners=True)]

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return _RULES

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename the parameters of an official file."""
        return join_branches(rename_keys(state_dict, _RULES))


def _block_rules() -> dict[str, Any]:
    """Rules for the blocks, which are numbered 0, 2 and 4 in the file."""

    def behind(place: str, new: str) -> Any:
        return lambda m: f"blocks.{int(m['block']) // 2}.{place}{m.expand(new)}"

    inner = {
        **mamba_rules(r"mamba\.", "mixer.", ("",)),
        r"proj\.0\.(?P<leaf>.*)": r"norm.\g<leaf>",
    }
    places = {"": "", r"spa_mamba\.": "spatial.", r"spe_mamba\.": "spectral."}
    return {
        rf"mamba\.(?P<block>\d)\.{theirs}{pattern}": behind(ours, new)
        for theirs, ours in places.items()
        for pattern, new in inner.items()
    } | {r"mamba\.(?P<block>\d)\.weights": behind("", "weights")}


_RULES: Rules = {
    r"patch_embedding\.(.*)": r"embed.\1",
    **_block_rules(),
    r"cls_head\.([01])\.(.*)": r"head.\1.\2",
    r"cls_head\.3\.(.*)": r"classifier.\1",
}


def _create(
    name: str,
    *,
    aux: bool = False,
    img_size: int | None = None,
    pretrained: bool = False,
    **kwargs: Any,
) -> MambaHSI:
    """A published network, for images of any size."""
    if aux:
        raise ValueError(f"aux=True: {name} has no auxiliary outputs")
    if pretrained:
        raise ValueError(f"pretrained=True: there are no weights for {name} to start from")
    return MambaHSI(**{"architecture": name, **kwargs})


@register_network(task="segmentation")
def mambahsi_pavia(num_classes: int = 9, in_chans: int = 103, **kwargs: Any) -> MambaHSI:
    """MambaHSI for the bands and classes of Pavia University: 0.4 M parameters."""
    return _create("mambahsi_pavia", num_classes=num_classes, in_chans=in_chans, **kwargs)


@register_network(task="segmentation")
def mambahsi_houston(num_classes: int = 15, in_chans: int = 144, **kwargs: Any) -> MambaHSI:
    """MambaHSI for the bands and classes of Houston 2013: 0.4 M parameters."""
    return _create("mambahsi_houston", num_classes=num_classes, in_chans=in_chans, **kwargs)


@register_network(task="segmentation")
def mambahsi_hanchuan(num_classes: int = 16, in_chans: int = 274, **kwargs: Any) -> MambaHSI:
    """MambaHSI for the bands and classes of WHU-Hi-HanChuan: 0.4 M parameters."""
    return _create("mambahsi_hanchuan", num_classes=num_classes, in_chans=in_chans, **kwargs)


@register_network(task="segmentation")
def mambahsi_honghu(num_classes: int = 22, in_chans: int = 270, **kwargs: Any) -> MambaHSI:
    """MambaHSI for the bands and classes of WHU-Hi-HongHu: 0.4 M parameters."""
    return _create("mambahsi_honghu", num_classes=num_classes, in_chans=in_chans, **kwargs)
