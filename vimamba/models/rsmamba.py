"""RSMamba (Chen et al. 2024, arXiv:2403.19654): one mixer along three paths, for remote sensing.

Every block reads the patches forwards, backwards and in a random order with one and the same Mamba
mixer, and adds the results up with weights that their means decide. All blocks share a norm.

The official code draws the random order anew in every block and pass, in evaluation, too, so its
answers vary from call to call. Here evaluation has one order for each block, that of a seed.

Official code: https://github.com/KyanChen/RSMamba (Apache-2.0)
Sizes: N batch, H and W image, h and w grid, L patches, C channels, K paths of T steps.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    GridEmbed,
    MambaMixer,
    drop_path_rates,
    join_branches,
    mamba_rules,
    to_pair,
)
from vimamba.layers.tracing import decide_when_run
from vimamba.models._builder import build_model
from vimamba.models._plain import PlainBackbone, quarters
from vimamba.scan_orders import num_paths, order_of_block

__all__ = ["RSMamba"]


@decide_when_run
def complete_patches(x: Tensor, patch: int, stride: int) -> Tensor:
    """Zeros right and below an image (N, C, H, W), so that a patch begins at every stride."""
    height, width = x.shape[2], x.shape[3]
    below = max((-(-height // stride) - 1) * stride + patch - height, 0)
    right = max((-(-width // stride) - 1) * stride + patch - width, 0)
    return F.pad(x, [0, right, 0, below])


class CornerPatchEmbed(GridEmbed):
    """Overlapping patches, the last ones completed by zeros (mmcv's "corner" padding)."""

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        stride: int,
        in_chans: int,
        dim: int,
        *,
        dynamic_img_size: bool = False,
        **dd: Any,
    ) -> None:
        super().__init__(img_size, patch_size, stride, dynamic_img_size=dynamic_img_size)
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=stride, bias=False, **dd)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Grid of an image of this size."""
        return -(-img_size[0] // self.stride[0]), -(-img_size[1] // self.stride[1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, h, w, C)."""
        x = complete_patches(self.checked(x), self.patch_size[0], self.stride[0])
        return self.proj(x).permute(0, 2, 3, 1)


class MultiPathBlock(nn.Module):
    """Residual block: what one mixer makes of the tokens along each path, weighed.

    Args:
        dim: C.
        paths: K.
        d_state: States per channel of the scan.
        gated: Learn the weights from the means of the paths' results; else all weigh the same.
        drop_path: Probability to leave the block out.
        dd: Device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        paths: int,
        *,
        d_state: int,
        gated: bool,
        drop_path: float,
        dd: dict[str, Any],
    ) -> None:
        super().__init__()
        self.num_paths = paths
        self.mixer = MambaMixer(dim, num_paths=1, d_state=d_state, **dd)
        self.gate = nn.Linear(paths * dim, paths, bias=False, **dd) if gated else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, normed: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C), and the same normed, along paths (K, T) to (N, L, C)."""
        images, steps = x.shape[0], paths.shape[1]
        # each path is a batch of its own, whose table is its one path
        tables = paths.unsqueeze(1).expand(-1, images, -1).reshape(-1, 1, steps)
        along = self.mixer(normed.repeat(self.num_paths, 1, 1), tables)
        along = along.unflatten(0, (self.num_paths, images))
        if self.gate is None:
            return x + self.drop_path(along.mean(dim=0))
        weights = self.gate(along.mean(dim=2).transpose(0, 1).flatten(1)).softmax(dim=-1)
        return x + self.drop_path(torch.einsum("knlc,nk->nlc", along, weights))


class RSMamba(PlainBackbone):
    """RSMamba backbone with a classifier.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size, stride: Side of a patch, and pixels from one to the next.
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        embed_dim: C.
        depth: Blocks.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take by turns. By default forwards, backwards
            and a shuffle whose seed is the number of the block.
        reshuffle: In training, shuffle the steps of the last path anew in every block and pass, by
            torch's random numbers.
        gated: Weigh the paths by what their results are; all the same if False.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 8,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        scan_order: str | Sequence[str] | None = None,
        reshuffle: bool = True,
        gated: bool = True,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        if scan_order is None:
            scan_order = [f"bidirectional + shuffle(seed={block})" for block in range(depth)]
        orders = [order_of_block(scan_order, block) for block in range(depth)]
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        super().__init__(
            CornerPatchEmbed(
                to_pair(img_size),
                patch_size,
                stride,
                in_chans,
                embed_dim,
                dynamic_img_size=dynamic_img_size,
                **dd,
            ),
            [
                MultiPathBlock(
                    embed_dim, num_paths(order), d_state=d_state, gated=gated, drop_path=rate, dd=dd
                )
                for order, rate in zip(orders, rates, strict=True)
            ],
            nn.LayerNorm(embed_dim, eps=1e-6, **dd),
            scan_order=orders,
            prefix="none",
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            drop_rate=drop_rate,
            fc_norm=nn.LayerNorm(embed_dim, eps=1e-6, **dd),
            dynamic_img_size=dynamic_img_size,
            **dd,
        )
        self.pre_norm = nn.LayerNorm(embed_dim, eps=1e-6, **dd)
        self.reshuffle = reshuffle
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Patches by their fan-in, the step sizes' bias as that of any linear layer."""
        super().init_parameters()
        proj: Any = self.patch_embed.proj
        trunc_normal_(proj.weight, std=1.0 / math.sqrt(proj.weight[0].numel()))
        for block in self.blocks:
            scan: Any = block.mixer.scan  # type: ignore[union-attr]
            bound = scan.dt_rank**-0.5
            nn.init.uniform_(scan.dt_bias, -bound, bound)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates; the norm that all blocks share is early."""
        groups = super().group_matcher(coarse)
        return {**groups, "stem": groups["stem"] + r"|^pre_norm"}

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and give the mixers' one path an axis of its own."""
        return join_branches(super().from_official(state_dict))

    def run_blocks(
        self, x: Tensor, take: list[int], last: int, norm: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens behind block `last`, and the features of the taps `take`."""
        x, paths = self.embed(x)
        features: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i <= last:
                table = self.shuffle_last(paths[self.scan_orders[i]])
                normed = self.pre_norm(x)
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(block, x, normed, table)
                else:
                    x = block(x, normed, table)
                self.tap(i, x, take, norm, features)
        return x, features

    def shuffle_last(self, paths: Tensor) -> Tensor:
        """The paths (K, T), in training with `reshuffle` the last one's steps in a new order."""
        if not (self.training and self.reshuffle):
            return paths
        order = torch.randperm(paths.shape[1], device=paths.device)
        return torch.cat([paths[:-1], paths[-1:, order]])


RULES = {
    r"backbone\.pos_embed": "pos_embed",
    r"backbone\.patch_embed\.projection\.weight": "patch_embed.proj.weight",
    **mamba_rules(r"backbone\.layers\.(\d+)\.", r"blocks.\1.mixer.", ("",)),
    r"backbone\.gate_layers\.(\d+)\.0\.weight": r"blocks.\1.gate.weight",
    r"backbone\.pre_norm\.(.*)": r"pre_norm.\1",
    r"backbone\.ln1\.(.*)": r"norm.\1",
    r"backbone\.ln2\.(.*)": r"fc_norm.\1",
    r"head\.fc\.(.*)": r"head.\1",
}
register_family(
    "RSMamba",
    RSMamba,
    RULES,
    remarks="The weights are for scenes of three data sets of remote sensing: UC Merced (21 "
    "classes), AID (30) and NWPU-RESISC45 (45). The names of the files are not known here, so they "
    "are fetched by hand.",
)

# means and deviations of 8-bit RGB, from the official configurations
_STATISTICS = {
    "ucmerced": (
        21,
        (123.770241, 125.41281689, 115.35737613),
        (44.17314347, 41.63589266, 39.5737929),
    ),
    "aid": (
        30,
        (101.02608706, 103.9996994, 93.50157708),
        (40.36728927, 37.11132278, 35.90649976),
    ),
    "nwpu": (
        45,
        (93.847266, 97.20128819, 87.66547902),
        (37.10216765, 34.61650149, 33.70191772),
    ),
}


def _cfg(tag: str = "", **kwargs: Any) -> dict[str, Any]:
    num_classes, mean, std = _STATISTICS[tag or "ucmerced"]
    return {
        "num_classes": num_classes,
        "custom_load": "hf" if tag else False,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": tuple(value / 255.0 for value in mean),
        "std": tuple(value / 255.0 for value in std),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0" if tag else None,
        "origin_url": "https://huggingface.co/KyanChen/RSMamba",
        "paper_name": "RSMamba: Remote Sensing Image Classification with State Space Model",
        "paper_ids": "arXiv:2403.19654",
        "notes": ("family: RSMamba", "generation: released weights"),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        **{
            f"rsmamba_{size}.{tag}": _cfg(tag)
            for size in ("base", "large", "huge")
            for tag in _STATISTICS
        },
        "test_rsmamba.untrained": _cfg(input_size=(3, 64, 64), num_classes=1000),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> RSMamba:
    features = quarters(kwargs.get("depth", 24))
    return build_model(RSMamba, variant, pretrained, features=features, **kwargs)


@register_model
def rsmamba_base(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-B: 6.4 M parameters, 784 patches."""
    return _create("rsmamba_base", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def rsmamba_large(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-L: 16.2 M parameters, 784 patches."""
    return _create("rsmamba_large", pretrained, **{"embed_dim": 256, "depth": 36, **kwargs})


@register_model
def rsmamba_huge(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-H: 33.1 M parameters, 784 patches."""
    return _create("rsmamba_huge", pretrained, **{"embed_dim": 320, "depth": 48, **kwargs})


@register_model
def test_rsmamba(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """A very small RSMamba for tests; no weights."""
    args = {"img_size": 64, "embed_dim": 48, "depth": 4, "d_state": 8}
    return _create("test_rsmamba", pretrained, **{**args, **kwargs})
