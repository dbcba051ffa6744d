"""LocalVim (Huang et al. 2024, arXiv:2403.09338): Vim whose blocks searched their own paths.

Each block runs Mamba along four of eight paths: rows, columns, and rows inside windows of 2 and of
7 cells, all of them also reversed. A gate on channels weighs the four results. LocalVMamba, the
pyramid of the same paper, is in localvmamba.py.

Official code: https://github.com/hunto/LocalMamba (Apache-2.0)
Sizes: N batch, H and W image, h and w grid, L = h * w patches, K paths of T steps, C channels, D
inner channels of a mixer.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import CheckpointError, StateDict, register_family
from vimamba.layers import (
    ChannelGate,
    MambaMixer,
    PaddedPatchEmbed,
    ResampledRotary,
    channel_gate_rules,
    init_linear_,
    join_branches,
    mamba_rules,
    pad_tokens,
    visit_padding,
)
from vimamba.layers.own_gradients import RmsNorm
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainParts, embed_patches
from vimamba.models.localvmamba import RELEASE, local_orders, scrambled_cells, take_cells
from vimamba.scan_orders import order_of_block

__all__ = ["LocalVim"]

# what the search found; so the official configuration of LocalVim-T says
SEARCHED = local_orders("""h v_flip w7 w7_flip; h_flip w2_flip w7 w7_flip; h h_flip v w7;
    h h_flip v v_flip; h h_flip v v_flip; h h_flip v v_flip; h_flip v v_flip w7;
    h_flip v v_flip w2_flip; h h_flip v v_flip; h h_flip v v_flip; h v v_flip w2;
    h v v_flip w2_flip; h h_flip v_flip w7; h_flip v v_flip w2; h h_flip v v_flip;
    h v w2 w2_flip; v v_flip w2 w7; h h_flip v w2; h h_flip w2_flip w7; v v_flip w2 w2_flip""")


class LocalMixer(MambaMixer):
    """The Mamba mixer along paths whose results pass through a channel gate and are then summed.

    Cells that pad a window are tokens like others to the convolution and the scan.
    """

    def __init__(self, dim: int, *, num_paths: int, scrambled: bool = False, **dd: Any) -> None:
        super().__init__(dim, num_paths=num_paths, average_paths=False, **dd)
        self.scrambled = scrambled
        self.gate = ChannelGate(self.out_proj.in_features, **dd)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C) along paths to (N, L, C).

        Args:
            x: All tokens; a class token is one of them.
            paths: (K, T), as `visit_padding` makes them; of a scrambled mixer (2, K, T), with the
                cells of `scrambled_cells` and anything behind them.
        """
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        length = x.shape[1]
        walked = paths[0] if self.scrambled else paths
        x, gate = self.in_proj(pad_tokens(x, walked)).chunk(2, dim=-1)
        u = self.convolve(x, walked)
        dt, B, C = self.project(u)
        y = self.scan(u, dt, B, C, walked, gate, merge=False)
        if self.scrambled:
            y = take_cells(y, paths[1])
        return self.out_proj(self.gate(y[:, :, :length]).sum(1))


class LocalBlock(nn.Module):
    """Pre-norm residual block around the mixer."""

    def __init__(self, dim: int, norm: nn.Module, *, drop_path: float, **mixer: Any) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = LocalMixer(dim, **mixer)
        self.drop_path = DropPath(drop_path)

    def update(self, x: Tensor, paths: Tensor) -> Tensor:
        """The block's update of the tokens (N, L, C), unless the path is dropped."""
        return self.mixer(self.norm(x), paths)

    def forward(self, x: Tensor, paths: Tensor) -> Tensor:
        """Tokens (N, L, C) to (N, L, C); see the mixer."""
        return x + self.drop_path(self.update(x, paths))


class LocalVim(PlainBackbone):
    """LocalVim with a classifier.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size: Of the patch convolution.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (class token), "avg" or "".
        embed_dim: C.
        depth: Blocks.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        class_token: A class token in the middle, also of every path, instead of the rotary
            embedding, which rotates the residual stream before every block.
        rotary_cells: Side of the grid for which the rotary embedding is made; it is resampled for
            others.
        stage_norm: Normalized updates of the last block of each quarter as features, LayerNorms in
            the blocks and no classifier: the layout of the published segmentation and detection
            backbones.
        scrambled_columns: Put the results of paths along columns where the official code puts them:
            on grids that are not square in other cells than their own. None does so with
            `stage_norm`, for those weights were trained on such grids.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Device and dtype of the parameters.
    """

    dense: ClassVar[Mapping[str, Any]] = {"stage_norm": True, "dynamic_img_size": True}

    def __init__(
        self,
        *,
        embed_dim: int = 192,
        depth: int = 20,
        scan_order: str | Sequence[str] = tuple(SEARCHED),
        class_token: bool = False,
        rotary_cells: int = 14,
        stage_norm: bool = False,
        scrambled_columns: bool | None = None,
        **options: Any,
    ) -> None:
        scrambled = stage_norm if scrambled_columns is None else scrambled_columns
        scrambled = scrambled and not class_token
        norm = partial(nn.LayerNorm if stage_norm else RmsNorm, eps=1e-5)

        def block(number: int, rate: float, paths: int, dd: dict[str, Any]) -> LocalBlock:
            order = order_of_block(scan_order, number)
            mixer = {"num_paths": paths, "scrambled": scrambled and "columns" in order}
            return LocalBlock(embed_dim, norm(embed_dim, **dd), drop_path=rate, **mixer, **dd)

        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=block,
            scan_order=scan_order,
            embed=partial(embed_patches, kind=PaddedPatchEmbed),
            norm=norm,
            dense_norm=norm if stage_norm else None,
            prefix="middle" if class_token else "none",
            shows_updates=stage_norm,
            antialias=False,
        )
        super().__init__(parts, **options)
        self.rotary = None if class_token else ResampledRotary(embed_dim, rotary_cells)
        self.scrambled_columns = scrambled
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """All linear layers, including those of the step sizes, alike; small outputs if deep."""
        init_linear_(self)
        for block in self.blocks:
            mixer: LocalMixer = block.mixer  # type: ignore[assignment]
            nn.init.zeros_(mixer.scan.dt_bias)
            with torch.no_grad():
                nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
                mixer.out_proj.weight /= math.sqrt(len(self.blocks))
        trunc_normal_(self.pos_embed, std=0.02)  # type: ignore[arg-type]
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, and join the parameters of the paths.

        Raises:
            CheckpointError: The file is for the other kind, or lacks a path.
        """
        rotary = "rope.freqs_cos" in state_dict
        if rotary != (self.rotary is not None):
            raise CheckpointError(f"rotary embeddings {'' if rotary else 'not '}in the file only")
        return join_branches(super().from_official(state_dict))

    def may_be_missing(self, state: StateDict) -> tuple[str, ...]:
        """The norms of a dense backbone that starts from a classifier."""
        norms = super().may_be_missing(state)
        return norms and (*norms, *(f"blocks.{i}.norm.bias" for i in range(len(self.blocks))))

    def insert_prefix(self, paths: Tensor, places: list[int], num_patches: int) -> Tensor:
        """Put the class token into the middle of every path, not counting padding."""
        shifted = torch.where(paths >= places[0], paths + 1, paths)
        token = torch.full_like(paths[:, :1], places[0])
        return torch.cat([shifted[:, : places[0]], token, shifted[:, places[0] :]], dim=1)

    def prepare(
        self, x: Tensor, paths: dict[str, Tensor], grid: tuple[int, int]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Paths (K, T) that visit the padding, or with cells (2, K, T); the rotary embedding."""
        for order, table in paths.items():
            visited = visit_padding(table, x.shape[1])
            if self.scrambled_columns and "columns" in order:
                cells = scrambled_cells(table, x.unflatten(1, grid))
                spare = table.shape[1] - cells.shape[1]
                visited = torch.stack([visited, F.pad(cells, (0, spare))])
            paths[order] = visited
        context = torch.jit.annotate(list[Tensor], [])
        if self.rotary is not None:
            cos, sin = self.rotary.tables(grid[0], grid[1], x)
            context = [cos, sin]
        return paths, context

    def enter_block(
        self,
        block: int,
        x: Tensor,
        paths: dict[str, Tensor],
        context: list[Tensor],
        grid: tuple[int, int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The residual stream, rotated."""
        if self.rotary is not None:
            x = self.rotary.turn(x, context[0], context[1])
        return x, paths


RULES = {
    r"(cls_token|pos_embed)": r"\1",
    r"(patch_embed\.proj|head)\.(weight|bias)": r"\1.\2",
    r"norm_f\.(.*)": r"norm.\1",
    r"layers\.(\d+)\.norm\.(.*)": r"blocks.\1.norm.\2",
    **mamba_rules(r"layers\.(\d+)\.mixer\.", r"blocks.\1.mixer.", ("_0", "_1", "_2", "_3")),
    **channel_gate_rules(r"layers\.(\d+)\.mixer\.attn\.", r"blocks.\1.mixer.gate."),
    r"outnorm_(\d)\.(.*)": r"tap_norms.\1.\2",
    r"rope\.freqs_(?:cos|sin)": None,
}
register_family(
    "LocalVim",
    LocalVim,
    RULES,
    layouts=({"stage_norm": True, "dynamic_img_size": True},),
    top1={
        "localvim_tiny.in1k": 76.2,
        "localvim_tiny_midcls.in1k": 77.8,
        "localvim_small.in1k": 81.1,
    },
)

_UNSURE = "weights: the official link leads to LocalVMamba-S, and which paths were trained is open"

default_cfgs = make_cfgs(
    {
        "localvim_tiny.in1k": {"file": "local_vim_tiny.ckpt"},
        "localvim_tiny_midcls.in1k": {"file": "local_vim_tiny_middle_cls_token.ckpt"},
        "localvim_small.in1k": {"note": _UNSURE},
        "localvim_small_searched.untrained": {"note": _UNSURE},
        "test_localvim.untrained": {"size": 96},
    },
    folder=RELEASE,
    license="apache-2.0",
    cell=None,
    fixed_input_size=True,
    first_conv="patch_embed.proj",
    classifier="head",
    origin_url="https://github.com/hunto/LocalMamba",
    paper_name="LocalMamba: Visual State Space Model with Windowed Selective Scan",
    paper_ids="arXiv:2403.09338",
)


@register_model
def localvim_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T: 8.0 M parameters, 196 tokens."""
    return build_model(LocalVim, "localvim_tiny", pretrained, kwargs, embed_dim=192)


@register_model
def localvim_tiny_midcls(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with a class token in the middle: 8.0 M parameters, 197 tokens."""
    sizes = {"embed_dim": 192, "class_token": True}
    return build_model(LocalVim, "localvim_tiny_midcls", pretrained, kwargs, **sizes)


@register_model
def localvim_small(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S as registered by the official code: rows and windows of 2, 27.8 M parameters."""
    sizes = {"embed_dim": 384, "scan_order": local_orders("h h_flip w2 w2_flip")}
    return build_model(LocalVim, "localvim_small", pretrained, kwargs, **sizes)


@register_model
def localvim_small_searched(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S with the paths that were searched for LocalVim-T: 27.8 M parameters."""
    return build_model(LocalVim, "localvim_small_searched", pretrained, kwargs, embed_dim=384)


@register_model
def test_localvim(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """A very small LocalVim for tests; no weights."""
    sizes = {"img_size": 96, "embed_dim": 32, "depth": 4}
    return build_model(LocalVim, "test_localvim", pretrained, kwargs, **sizes)
