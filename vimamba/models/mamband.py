"""Mamba-ND (Li et al. 2024, arXiv:2402.05892), its models of images: one direction in every block.

Blocks go along rows, back, down columns and back, by turns. What a block skips is what it normed,
so there is no residual stream. In the middle of the stack 2x2 tokens become one.

Official code: https://github.com/jacklishufan/Mamba-ND (no license file). Its columns work on
square grids only; here they do on all.
Sizes: N batch, H and W image, h and w grid, L = h * w tokens, C channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    MambaMixer,
    PatchEmbed,
    PatchMerging,
    drop_path_rates,
    join_branches,
    mamba_rules,
    to_pair,
)
from vimamba.models._builder import build_model
from vimamba.models._plain import PlainBackbone
from vimamba.scan_orders import num_paths, order_of_block

__all__ = ["MambaND"]

ALTERNATING = ("raster", "raster(reverse=True)", "columns", "columns(reverse=True)")


def halves(merge_after: int, depth: int) -> list[int]:
    """Middle and last block of both grids, where features are taken."""
    return sorted({merge_after // 2, merge_after, (merge_after + depth) // 2, depth - 1})


class NormedBlock(nn.Module):
    """A norm, and a mixer beside it: the norm's output is what is skipped."""

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
            sum; or a list of them, which the blocks take by turns. Mixers average over paths.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 8,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        embed_dim: int = 384,
        depth: int = 24,
        merge_after: int = 9,
        d_state: int = 16,
        scan_order: str | Sequence[str] = ALTERNATING,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if not 0 <= merge_after < depth - 1:
            raise ValueError(f"merge_after={merge_after} must be in [0, {depth - 2}]")
        dd = {"device": device, "dtype": dtype}
        orders = [order_of_block(scan_order, block) for block in range(depth)]
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        super().__init__(
            PatchEmbed(
                to_pair(img_size),
                patch_size,
                patch_size,
                in_chans,
                embed_dim,
                dynamic_img_size=dynamic_img_size,
                **dd,
            ),
            (
                NormedBlock(
                    embed_dim, drop_path=rate, dd=dd, num_paths=num_paths(order), d_state=d_state
                )
                for rate, order in zip(rates, orders, strict=True)
            ),
            nn.LayerNorm(embed_dim, eps=1e-6, **dd),
            scan_order=orders,
            prefix="none",
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            fc_norm=nn.LayerNorm(embed_dim, eps=1e-6, **dd),
            embed_dim=embed_dim,
            drop_rate=drop_rate,
            taps=halves(merge_after, depth),
            dynamic_img_size=dynamic_img_size,
            **dd,
        )
        self.merge_after = merge_after
        self.merge: nn.Module = PatchMerging(embed_dim, embed_dim, **dd)
        for info, tap in zip(self.feature_info, self.taps, strict=True):
            info["reduction"] = patch_size if tap <= merge_after else 2 * patch_size
        self.init_weights(needs_reset=False)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        groups = super().group_matcher(coarse)
        return {**groups, "blocks": [*groups["blocks"], (r"^merge", (self.merge_after,))]}

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and put the four tokens that become one in the order of `PatchMerging`.

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

    def run_blocks(
        self, x: Tensor, take: list[int], last: int, norm: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens behind block `last`, and the features of the taps `take`."""
        height, width = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        x, paths = self.embed(x)
        features: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i <= last:
                if i == self.merge_after + 1:
                    grid = self.merge(x.unflatten(1, (height, width)))
                    paths = self.grid_paths(grid)
                    x = grid.flatten(1, 2)
                table = paths[self.scan_orders[i]]
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(block, x, table)
                else:
                    x = block(x, table)
                self.tap(i, x, take, norm, features)
        return x, features

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


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": "jacklishufan/Mamba-ND" if file else None,
        "hf_hub_filename": file or None,
        "custom_load": "hf" if file else False,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "unknown" if file else None,
        "origin_url": "https://github.com/jacklishufan/Mamba-ND",
        "paper_name": "Mamba-ND: Selective State Space Modeling for Multi-Dimensional Data",
        "paper_ids": "arXiv:2402.05892",
        "notes": (
            "family: Mamba-ND",
            "generation: image model",
            "licence: unstated, the official repository has no licence file",
        ),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "mamband_small.in1k": _cfg("in1k/mamba2d_s.pth"),
        "mamband_base.in1k": _cfg("in1k/mamba2d_b.pth"),
        "test_mamband.untrained": _cfg(input_size=(3, 48, 48)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> MambaND:
    taps = halves(kwargs.get("merge_after", 9), kwargs.get("depth", 24))
    return build_model(MambaND, variant, pretrained, features=range(len(taps)), **kwargs)


@register_model
def mamband_small(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """Mamba-ND-S: 24.5 M parameters, 784 tokens, then 196."""
    return _create("mamband_small", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def mamband_base(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """Mamba-ND-B: 94.4 M parameters, 784 tokens, then 196."""
    return _create("mamband_base", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def test_mamband(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """A very small Mamba-ND for tests; no weights."""
    args = {"img_size": 48, "embed_dim": 48, "depth": 5, "merge_after": 2, "d_state": 8}
    return _create("test_mamband", pretrained, **{**args, **kwargs})
