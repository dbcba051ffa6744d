"""RSMamba (Chen et al. 2024, arXiv:2403.19654): one mixer along three paths, for remote sensing.

Every block scans the patches forwards, backwards and in a random order with the same Mamba mixer,
and sums the results with weights computed from their means. All blocks share one norm.

The official code draws a new random order in every block and pass, even in evaluation, so its
outputs vary from call to call. Here evaluation uses one seeded order per block.

Official code: https://github.com/KyanChen/RSMamba (Apache-2.0)
Sizes: N batch, H and W image, h and w grid, L patches, C channels, K paths of T steps.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import MambaMixer, PatchEmbed, join_branches, mamba_rules
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainParts, embed_patches
from vimamba.timm_layers import get_device_dtype

__all__ = ["RSMamba"]


def complete_patches(x: Tensor, patch: int, stride: int) -> Tensor:
    """Zero-pad or crop an image (N, C, H, W) right and below: a patch starts at every stride."""
    height, width = x.shape[2], x.shape[3]
    below = (-(-height // stride) - 1) * stride + patch - height
    right = (-(-width // stride) - 1) * stride + patch - width
    return F.pad(x, (0, right, 0, below))


class CornerPatchEmbed(PatchEmbed):
    """Overlapping patches, the last ones zero-padded (mmcv's "corner" padding), no bias."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.proj.register_parameter("bias", None)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Grid of an image of this size."""
        return -(-img_size[0] // self.stride[0]), -(-img_size[1] // self.stride[1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, h, w, C)."""
        x = complete_patches(self.checked(x), self.patch_size[0], self.stride[0])
        return self.proj(x).permute(0, 2, 3, 1)


def layer_norm(dim: int, **dd: Any) -> nn.Module:
    """The norm of patches, blocks and classifier."""
    return nn.LayerNorm(dim, eps=1e-6, **dd)


class MultiPathBlock(nn.Module):
    """Residual block: the weighted sum of one mixer's outputs along each path.

    Args:
        dim: C.
        paths: K.
        d_state: States per channel of the scan.
        gated: Compute the weights from the means of the paths' outputs; equal weights if False.
        drop_path: Probability of dropping the block.
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

    def forward(self, tokens: Tensor, paths: Tensor) -> Tensor:
        """Tokens and the same normed, (2, N, L, C), along paths (K, T) to (N, L, C)."""
        x, normed = tokens[0], tokens[1]
        images, steps = x.shape[0], paths.shape[1]
        # each path is a separate batch with a table of one path
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
            sum; or a list of them, which the blocks take in turn. By default forwards, backwards
            and a shuffle whose seed is the number of the block.
        reshuffle: In training, reshuffle the steps of the last path in every block and pass, with
            torch's random numbers.
        gated: Weight the paths by their outputs; equally if False.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        stride: int = 8,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        scan_order: str | Sequence[str] | None = None,
        reshuffle: bool = True,
        gated: bool = True,
        **options: Any,
    ) -> None:
        if scan_order is None:
            scan_order = [f"bidirectional + shuffle(seed={block})" for block in range(depth)]

        def block(_number: int, rate: float, paths: int, dd: dict[str, Any]) -> nn.Module:
            sizes = {"d_state": d_state, "gated": gated}
            return MultiPathBlock(embed_dim, paths, drop_path=rate, dd=dd, **sizes)

        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=block,
            scan_order=scan_order,
            embed=partial(embed_patches, stride=stride, kind=CornerPatchEmbed),
            norm=layer_norm,
            fc_norm=layer_norm,
        )
        super().__init__(parts, **options)
        dd: dict[str, Any] = get_device_dtype(self.patch_embed)
        self.pre_norm = layer_norm(embed_dim, **dd)
        self.reshuffle = reshuffle
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """Patch embedding by its fan-in, the step size bias like that of any linear layer."""
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

    def enter_block(
        self,
        block: int,
        x: Tensor,
        paths: dict[str, Tensor],
        context: list[Tensor],
        grid: tuple[int, int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The tokens and the same normed, (2, N, L, C), as all blocks share the norm."""
        order = self.scan_orders[block]
        paths[order] = self.shuffle_last(paths[order])
        return torch.stack([x, self.pre_norm(x)]), paths

    def shuffle_last(self, paths: Tensor) -> Tensor:
        """The paths (K, T); with `reshuffle`, training shuffles the last one's steps."""
        if not (self.training and self.reshuffle):
            return paths
        order = torch.randperm(paths.shape[1], dtype=torch.int64, device=paths.device)
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
    "classes), AID (30) and NWPU-RESISC45 (45). The names of the files are not known here, so "
    "download them by hand.",
)

# means and standard deviations of 8-bit RGB, from the official configurations
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


def _row(name: str) -> dict[str, Any]:
    """The fields that differ between data sets; statistics of pixels from 0 to 1."""
    num_classes, mean, std = _STATISTICS[name]
    return {
        "num_classes": num_classes,
        "mean": tuple(value / 255.0 for value in mean),
        "std": tuple(value / 255.0 for value in std),
    }


default_cfgs = make_cfgs(
    {
        **{
            f"rsmamba_{size}.{name}": {**_row(name), "custom_load": "hf"}
            for size in ("base", "large", "huge")
            for name in _STATISTICS
        },
        "test_rsmamba.untrained": {"size": 64},
    },
    license="apache-2.0",
    cell=None,
    fixed_input_size=True,
    first_conv="patch_embed.proj",
    classifier="head",
    origin_url="https://huggingface.co/KyanChen/RSMamba",
    paper_name="RSMamba: Remote Sensing Image Classification with State Space Model",
    paper_ids="arXiv:2403.19654",
    notes=("generation: released weights",),
)


@register_model
def rsmamba_base(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-B: 6.4 M parameters, 784 patches."""
    sizes = {"embed_dim": 192}
    return build_model(RSMamba, "rsmamba_base", pretrained, kwargs, **sizes)


@register_model
def rsmamba_large(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-L: 16.2 M parameters, 784 patches."""
    sizes = {"embed_dim": 256, "depth": 36}
    return build_model(RSMamba, "rsmamba_large", pretrained, kwargs, **sizes)


@register_model
def rsmamba_huge(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-H: 33.1 M parameters, 784 patches."""
    sizes = {"embed_dim": 320, "depth": 48}
    return build_model(RSMamba, "rsmamba_huge", pretrained, kwargs, **sizes)


@register_model
def test_rsmamba(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """A very small RSMamba for tests; no weights."""
    sizes = {"img_size": 64, "embed_dim": 48, "depth": 4, "d_state": 8}
    return build_model(RSMamba, "test_rsmamba", pretrained, kwargs, **sizes)
