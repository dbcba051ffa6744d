"""LocalVMamba (Huang et al. 2024, arXiv:2403.09338): VMamba whose blocks searched their own paths.

Each block scans along four of eight paths: rows, columns, and rows inside windows of 2 and of 7
cells, all of them also reversed. A gate on channels weighs the four results. LocalVim, the plain
model of the same paper, is in localvim.py.

Official code: https://github.com/hunto/LocalMamba (Apache-2.0)
Sizes: N batch, H and W image or grid, L cells, K paths of T steps, C channels of a stage, D inner
channels of a mixer. Everything is channels-last.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import StateDict, register_family
from vimamba.layers import (
    GATED_SS2D,
    SS2D,
    ChannelGate,
    PatchMerging,
    PatchStem,
    VSSBlock,
    channel_gate_rules,
    split_paths,
    ss2d_rules,
)
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._staged import StagedBackbone, StagedParts
from vimamba.models.vmamba import next_stage

__all__ = ["LocalVMamba"]

# the official names of single paths
_PATHS = {
    "h": "raster",
    "h_flip": "raster(reverse=True)",
    "v": "columns",
    "v_flip": "columns(reverse=True)",
    "w2": "windows(size=2)",
    "w2_flip": "windows(size=2, reverse=True)",
    "w7": "windows(size=7)",
    "w7_flip": "windows(size=7, reverse=True)",
}


def local_orders(searched: str) -> list[str]:
    """Scan orders of all blocks, from official names of paths: "h v w2 w7_flip; v v_flip w7 w2"."""
    return [" + ".join(_PATHS[name] for name in block.split()) for block in searched.split(";")]


# what the search found; so the official configurations say
_TINY = """h h_flip w7 w7_flip; h_flip v_flip w2 w2_flip; h_flip v_flip w2_flip w7;
    h_flip v v_flip w2; h h_flip v_flip w2_flip; h_flip v_flip w2 w2_flip; h w2_flip w7 w7_flip;
    h h_flip v v_flip; h v_flip w7 w7_flip; h_flip v w2 w7_flip; v v_flip w2 w7_flip;
    h h_flip v_flip w2_flip; v_flip w2_flip w7 w7_flip; h_flip v_flip w2_flip w7_flip;
    h_flip v w7 w7_flip"""
_SMALL = """h v v_flip w7_flip; h h_flip v w7; h_flip v v_flip w7; h_flip v w2_flip w7;
    h_flip v w2_flip w7; h_flip v_flip w2 w7_flip; h_flip v v_flip w7; h v v_flip w7; h v v_flip w7;
    h v v_flip w7_flip; h h_flip v v_flip; h v v_flip w2; v v_flip w2_flip w7; h h_flip v w2;
    h_flip v v_flip w7_flip; h h_flip v v_flip; h v v_flip w7_flip; h v v_flip w7_flip;
    h h_flip v_flip w7; h_flip v_flip w2_flip w7; h_flip v v_flip w7_flip; v v_flip w7 w7_flip;
    h v v_flip w7_flip; h_flip v v_flip w2; h v v_flip w2_flip; h h_flip v w7; h h_flip w7 w7_flip;
    h v_flip w2 w2_flip; h v_flip w2 w7; h v v_flip w7_flip; h_flip v w2_flip w7;
    h_flip v_flip w7 w7_flip; h v w7 w7_flip"""


def scrambled_cells(paths: Tensor, like: Tensor) -> Tensor:
    """The cell that the official code reads a path's result from, for each cell it writes.

    The code undoes a path along columns by applying its permutation again instead of the inverse.
    On a square grid that is the same.

    Args:
        paths: (K, T) or (N, K, T), T >= L.
        like: Any tensor of tokens on the grid, (N, H, W, C).

    Returns:
        (K, L) or (N, K, L).
    """
    columns = torch.ops.vimamba.scan_paths(like, "columns")[0]
    steps = paths[..., : columns.shape[0]]
    along = (steps == columns).all(-1) | (steps == columns.flip(0)).all(-1)
    cells = torch.arange(columns.shape[0], dtype=torch.int64, device=paths.device)
    return torch.where(along.unsqueeze(-1), columns[columns], cells)


def take_cells(y: Tensor, cells: Tensor) -> Tensor:
    """Results (N, K, L, D) at the cells (K, L) or (N, K, L) of each path."""
    return y.gather(2, cells.unsqueeze(-1).expand(y.shape))


class LocalSS2D(SS2D):
    """SS2D whose paths' results pass through one shared channel gate and are then summed.

    Args:
        dim: C.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum.
        scrambled_columns: Put the results of paths along columns where the official code does.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self, dim: int, *, scan_order: str, scrambled_columns: bool = False, **dd: Any
    ) -> None:
        super().__init__(dim, scan_order=scan_order, combine=nn.Identity(), **GATED_SS2D, **dd)
        self.scrambled_columns = scrambled_columns and "columns" in scan_order
        self.gate = ChannelGate(self.out_norm.normalized_shape[0], **dd)

    def mix_grid(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, H, W, D) along paths (K, T) or (N, K, T), gated and added: (N, L, D)."""
        y = self.mix(x.flatten(1, 2), paths)
        if self.scrambled_columns:
            y = take_cells(y, scrambled_cells(paths, x))
        return self.gate(y).sum(1)


class LocalVMamba(StagedBackbone):
    """LocalVMamba with a classifier.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        depths: Blocks per stage.
        dims: Channels per stage.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        scrambled_columns: Put the results of paths along columns where the official code puts them:
            on maps that are not square in other cells than their own. None does so with
            `stage_norm`, for those weights were trained on such maps.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 2, 9, 2),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        scan_order: str | Sequence[str] = tuple(local_orders(_TINY)),
        stage_norm: bool = False,
        scrambled_columns: bool | None = None,
        **options: Any,
    ) -> None:
        scrambled = stage_norm if scrambled_columns is None else scrambled_columns

        def block(
            _stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
        ) -> nn.Module:
            mixer = LocalSS2D(dim, scan_order=next(orders), scrambled_columns=scrambled, **dd)
            return VSSBlock(dim, mixer, mlp_ratio=0.0, drop_path=rate, **dd)

        parts = StagedParts(
            depths=depths,
            dims=dims,
            stem=PatchStem,
            block=block,
            downsample=PatchMerging,
            scan_order=scan_order,
        )
        super().__init__(parts, stage_norm=stage_norm, **options)
        self.init_weights(needs_reset=False)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and split each path's parameters into an axis or a layer."""
        return split_paths(super().from_official(state_dict))


_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_OURS = r"stages.\1.blocks.\2."
RULES = {
    r"patch_embed\.0\.(.*)": r"stem.conv1.\1",
    r"patch_embed\.2\.(.*)": r"stem.norm1.\1",
    **ss2d_rules(_BLOCK + r"op\.", _OURS + "mixer."),
    **channel_gate_rules(_BLOCK + r"op\.multi_scan\.attn\.", _OURS + "mixer.gate."),
    _BLOCK + r"norm\.(.*)": _OURS + r"norm1.\3",
    r"layers\.(\d+)\.downsample\.(norm|reduction)\.(.*)": next_stage,
    r"classifier\.norm\.(.*)": r"norm.\1",
    r"classifier\.head\.(.*)": r"head.fc.\1",
    r"outnorm(\d)\.(.*)": r"stage_norms.\1.\2",
}
register_family(
    "LocalVMamba",
    LocalVMamba,
    RULES,
    layouts=({"stage_norm": True},),
    top1={"localvmamba_tiny.in1k": 82.7, "localvmamba_small.in1k": 83.7},
)

RELEASE = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0"

default_cfgs = make_cfgs(
    {
        # published in the paper only: no classifier was released
        "localvmamba_tiny.in1k": {},
        "localvmamba_small.in1k": {"file": "local_vssm_small.ckpt"},
        "test_localvmamba.untrained": {"size": 96},
    },
    folder=RELEASE,
    license="apache-2.0",
    first_conv="stem.conv1",
    classifier="head.fc",
    origin_url="https://github.com/hunto/LocalMamba",
    paper_name="LocalMamba: Visual State Space Model with Windowed Selective Scan",
    paper_ids="arXiv:2403.09338",
)


@register_model
def localvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-T: 25.5 M parameters; no weights at an address."""
    return build_model(LocalVMamba, "localvmamba_tiny", pretrained, kwargs, depths=(2, 2, 9, 2))


@register_model
def localvmamba_small(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-S: 49.7 M parameters."""
    sizes = {"depths": (2, 2, 27, 2), "scan_order": local_orders(_SMALL)}
    return build_model(LocalVMamba, "localvmamba_small", pretrained, kwargs, **sizes)


@register_model
def test_localvmamba(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """A very small LocalVMamba for tests; no weights."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}
    return build_model(LocalVMamba, "test_localvmamba", pretrained, kwargs, **sizes)
