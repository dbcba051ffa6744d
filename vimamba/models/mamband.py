"""Mamba-ND (Li et al. 2024, arXiv:2402.05892), its models of images: one direction in every block.

Blocks scan rows, reversed rows, columns and reversed columns in turn. A block's skip connection
carries the normalized input, so there is no residual stream. In the middle of the stack 2x2 tokens
become one.

Official code: https://github.com/jacklishufan/Mamba-ND (no license file). Its columns work on
square grids only; here they do on all.
Sizes: N batch, H and W image, h and w grid, L = h * w tokens, C channels.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import MambaMixer, PatchMerging, join_branches, mamba_rules
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainParts
from vimamba.timm_layers import get_device_dtype

__all__ = ["MambaND"]

ALTERNATING = ("raster", "raster(reverse=True)", "columns", "columns(reverse=True)")


def halves(merge_after: int, depth: int) -> list[int]:
    """Middle and last block on either grid, where features are taken."""
    return sorted({merge_after // 2, merge_after, (merge_after + depth) // 2, depth - 1})


class NormedBlock(nn.Module):
    """A norm and a mixer; the skip connection carries the norm's output."""

    def __init__(self, dim: int, *, drop_path: float, dd: dict[str, Any], **mixer: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = MambaMixer(dim, **mixer, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C) along paths (K, T) or (N, K, T) to (N, L, C)."""
        x = self.norm(x)
        return x + self.drop_path(self.mixer(x, paths))


class MambaND(PlainBackbone):
    """Mamba-ND backbone of images with a classifier; its features are those of both grids.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size: Side of a patch.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "avg" or "".
        embed_dim: C.
        depth: Blocks.
        merge_after: Block after which 2x2 tokens become one.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn. Mixers average over paths.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        patch_size: int = 8,
        embed_dim: int = 384,
        depth: int = 24,
        merge_after: int = 9,
        d_state: int = 16,
        scan_order: str | Sequence[str] = ALTERNATING,
        **options: Any,
    ) -> None:
        if not 0 <= merge_after < depth - 1:
            raise ValueError(f"merge_after={merge_after} must be in [0, {depth - 2}]")

        def block(_number: int, rate: float, paths: int, dd: dict[str, Any]) -> NormedBlock:
            return NormedBlock(embed_dim, drop_path=rate, dd=dd, num_paths=paths, d_state=d_state)

        norm = partial(nn.LayerNorm, eps=1e-6)
        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=block,
            scan_order=scan_order,
            norm=norm,
            fc_norm=norm,
            taps=halves(merge_after, depth),
        )
        super().__init__(parts, patch_size=patch_size, **options)
        self.merge_after = merge_after
        dd: dict[str, Any] = get_device_dtype(self.patch_embed)
        self.merge: nn.Module = PatchMerging(embed_dim, embed_dim, **dd)
        for info, tap in zip(self.feature_info, self.taps, strict=True):
            info["reduction"] = patch_size if tap <= merge_after else 2 * patch_size
        self.init_weights(needs_reset=False)

    @classmethod
    def default_features(cls, given: Mapping[str, Any]) -> Sequence[int]:
        """All of them, two on each grid."""
        sizes = {**cls.arguments(), **given}
        return range(len(halves(sizes["merge_after"], sizes["depth"])))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        groups = super().group_matcher(coarse)
        return {**groups, "blocks": [*groups["blocks"], (r"^merge", (self.merge_after,))]}

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and reorder the four tokens that become one as in `PatchMerging`.

        Raises:
            CheckpointError: A key matches no rule.
        """
        state = join_branches(super().from_official(state_dict))
        for key, value in state.items():
            if key.startswith("merge."):
                # theirs: channel, row, column
                parts = value.unflatten(-1, (-1, 2, 2)).movedim(-3, -1)
                state[key] = parts.transpose(-3, -2).flatten(-3)
        return state

    def enter_block(
        self,
        block: int,
        x: Tensor,
        paths: dict[str, Tensor],
        context: list[Tensor],
        grid: tuple[int, int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Merge the tokens, and find the paths on their new grid, in the middle of the stack."""
        if block == self.merge_after + 1:
            merged = self.merge(x.unflatten(1, grid))
            return merged.flatten(1, 2), self.grid_paths(merged)
        return x, paths

    def to_maps(
        self, features: list[Tensor], taps: list[int], height: int, width: int
    ) -> list[Tensor]:
        """Tokens (N, L, C) to maps (N, C, h, w), those after the merging of half the sides."""
        maps: list[Tensor] = []
        for feature, tap in zip(features, taps):  # noqa: B905  TorchScript knows no `strict`
            size = (height, width)
            if self.taps[tap] > self.merge_after:
                size = ((height + 1) // 2, (width + 1) // 2)
            maps.append(feature.unflatten(1, size).permute(0, 3, 1, 2).contiguous())
        return maps

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the chosen features do not need; gives back their absolute indices."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if len(self.blocks) <= self.merge_after + 1:
            self.merge = nn.Identity()
        return take


_LAYER = r"backbone\.layers\.(\d+)\."
RULES = {
    r"backbone\.pos_embed": "pos_embed",
    r"backbone\.patch_embed\.projection\.(.*)": r"patch_embed.proj.\1",
    _LAYER + r"norm\.(.*)": r"blocks.\1.norm.\2",
    **mamba_rules(_LAYER + r"mixer\.", r"blocks.\1.mixer.", ("",)),
    _LAYER + r"down_sample_layer\.(norm|reduction)\.(.*)": r"merge.\2.\3",
    r"backbone\.ln1\.(.*)": r"norm.\1",
    r"backbone\.ln2\.(.*)": r"fc_norm.\1",
    r"head\.fc\.(.*)": r"head.\1",
}
register_family(
    "Mamba-ND", MambaND, RULES, top1={"mamband_small.in1k": 81.7, "mamband_base.in1k": 83.0}
)

default_cfgs = make_cfgs(
    {
        "mamband_small.in1k": {"file": "in1k/mamba2d_s.pth"},
        "mamband_base.in1k": {"file": "in1k/mamba2d_b.pth"},
        "test_mamband.untrained": {"size": 48},
    },
    hub="jacklishufan/Mamba-ND",
    license="unknown",
    cell=None,
    fixed_input_size=True,
    first_conv="patch_embed.proj",
    classifier="head",
    origin_url="https://github.com/jacklishufan/Mamba-ND",
    paper_name="Mamba-ND: Selective State Space Modeling for Multi-Dimensional Data",
    paper_ids="arXiv:2402.05892",
    notes=("model of images", NO_LICENSE),
)


@register_model
def mamband_small(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """Mamba-ND-S: 24.5 M parameters, 784 tokens, then 196."""
    return build_model(MambaND, "mamband_small", pretrained, kwargs, embed_dim=384)


@register_model
def mamband_base(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """Mamba-ND-B: 94.4 M parameters, 784 tokens, then 196."""
    return build_model(MambaND, "mamband_base", pretrained, kwargs, embed_dim=768)


@register_model
def test_mamband(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """A very small Mamba-ND for tests; no weights."""
    sizes = {"img_size": 48, "embed_dim": 48, "depth": 5, "merge_after": 2, "d_state": 8}
    return build_model(MambaND, "test_mamband", pretrained, kwargs, **sizes)
