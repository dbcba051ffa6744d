"""LocalVim (Huang et al. 2024, arXiv:2403.09338): Vim whose blocks searched their own paths.

Each block runs Mamba along four of eight paths: rows, columns, and rows inside windows of 2 and of
7 cells, all of them also reversed. A gate on channels weighs the four results. LocalVMamba, the
pyramid of the same paper, is in localvmamba.py.

Official code: https://github.com/hunto/LocalMamba (Apache-2.0)
Sizes: N batch, H and W image, h and w grid, L = h * w patches, K paths of T steps, C channels, D
inner channels of a mixer.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, RmsNorm, trunc_normal_
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from vimamba.checkpoints import CheckpointError, StateDict, register_family
from vimamba.layers import (
    ChannelGate,
    MambaMixer,
    PatchEmbed,
    RotaryEmbed,
    channel_gate_rules,
    drop_path_rates,
    join_branches,
    mamba_rules,
    to_pair,
)
from vimamba.layers.tokens import resample_tokens
from vimamba.layers.tracing import refuse_plain_onnx
from vimamba.models._builder import build_model
from vimamba.models._plain import PlainBackbone, quarters
from vimamba.models.localvmamba import RELEASE, local_orders, scrambled_cells, take_cells
from vimamba.scan_orders import num_paths, order_of_block

__all__ = ["LocalVim"]

# what the search found; so the official configuration of LocalVim-T says
SEARCHED = local_orders("""h v_flip w7 w7_flip; h_flip w2_flip w7 w7_flip; h h_flip v w7;
    h h_flip v v_flip; h h_flip v v_flip; h h_flip v v_flip; h_flip v v_flip w7;
    h_flip v v_flip w2_flip; h h_flip v v_flip; h h_flip v v_flip; h v v_flip w2;
    h v v_flip w2_flip; h h_flip v_flip w7; h_flip v v_flip w2; h h_flip v v_flip;
    h v w2 w2_flip; v v_flip w2 w7; h h_flip v w2; h h_flip w2_flip w7; v v_flip w2 w2_flip""")


class PaddedPatchEmbed(PatchEmbed):
    """Patches side by side; those that the image does not fill are completed by zeros."""

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Grid of an image of this size."""
        return -(-img_size[0] // self.patch_size[0]), -(-img_size[1] // self.patch_size[1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, h, w, C)."""
        x = self.checked(x)
        x = F.pad(x, (0, -x.shape[3] % self.patch_size[1], 0, -x.shape[2] % self.patch_size[0]))
        return self.proj(x).permute(0, 2, 3, 1)


class ResampledRotary(RotaryEmbed):
    """Rotary embedding whose sines and cosines, not angles, are resampled for other grids.

    Args:
        dim: C.
        side: Cells of a side of the grid that the angles are for.
    """

    def __init__(self, dim: int, side: int = 14) -> None:
        super().__init__(dim, side)
        self.side = side

    def tables(self, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1, L, C) in float32, as official files hold them."""
        angles = self.single_angles(self.side, self.side, like)
        tables = torch.stack([angles.cos(), angles.sin()])
        cells = (self.side, self.side)
        tables = resample_tokens(tables, cells, (height, width), antialias=False)
        return tables[:1], tables[1:]

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate neighboring pairs of channels of (N, L, C)."""
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
        return (x * cos + turned * sin).to(x.dtype)


def pad_tokens(x: Tensor, paths: Tensor) -> Tensor:
    """Zero tokens behind tokens (N, L, C), as many as paths (K, T) have steps beyond L."""
    # a slice beyond the end is empty, also in a trace
    zeros = x.new_zeros((1, paths.shape[-1], 1))[:, x.shape[1] :]
    return torch.cat([x, zeros.expand(x.shape[0], -1, x.shape[2])], dim=1)


def visit_padding(paths: Tensor, num_tokens: int) -> Tensor:
    """Let paths (K, T) over L tokens visit those of `pad_tokens` where they visit none."""
    missing = paths < 0
    extra = num_tokens - 1 + missing.cumsum(-1)
    return torch.where(missing & (extra < paths.shape[-1]), extra, paths)


class LocalMixer(MambaMixer):
    """The Mamba mixer along paths whose results pass a gate on channels before they add up.

    Cells that fill a window up are tokens like others to the convolution and to the scan.
    """

    def __init__(self, dim: int, *, num_paths: int, **dd: Any) -> None:
        super().__init__(dim, num_paths=num_paths, average_paths=False, **dd)
        self.gate = ChannelGate(self.out_proj.in_features, **dd)

    def forward(self, x: Tensor, paths: Tensor, cells: Tensor | None = None) -> Tensor:
        """Tokens (N, L, C) along paths to (N, L, C).

        Args:
            x: All tokens; a class token is one of them.
            paths: (K, T), as `visit_padding` makes them.
            cells: (K, L) from `scrambled_cells`.
        """
        if not torch.jit.is_scripting():
            refuse_plain_onnx()
        length = x.shape[1]
        x, gate = self.in_proj(pad_tokens(x, paths)).chunk(2, dim=-1)
        u = self.convolve(x, paths)
        dt, B, C = self.project(u)
        y = self.scan(u, dt, B, C, paths, gate, merge=False)[:, :, :length]
        if cells is not None:
            y = take_cells(y, cells)
        return self.out_proj(self.gate(y).sum(1))


class LocalBlock(nn.Module):
    """Pre-norm residual block around the mixer."""

    def __init__(
        self, dim: int, norm: nn.Module, *, num_paths: int, drop_path: float, **dd: Any
    ) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = LocalMixer(dim, num_paths=num_paths, **dd)
        self.drop_path = DropPath(drop_path)

    def mix(self, x: Tensor, paths: Tensor, cells: Tensor | None = None) -> Tensor:
        """What the mixer makes of the tokens (N, L, C)."""
        return self.mixer(self.norm(x), paths, cells)

    def forward(self, x: Tensor, paths: Tensor, cells: Tensor | None = None) -> Tensor:
        """Tokens (N, L, C) to (N, L, C); see the mixer."""
        return x + self.drop_path(self.mix(x, paths, cells))


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
            sum; or a list of them, which the blocks take by turns.
        class_token: A class token in the middle, also of every path, in place of the rotary
            embedding, which turns the residual stream before every block.
        rotary_cells: Side of the grid for which the rotary embedding is made; it is resampled for
            others.
        stage_norm: What the last block of each quarter adds, normed, as features, LayerNorms in the
            blocks and no classifier: the layout of the published segmentation and detection
            backbones.
        scrambled_columns: Put the results of paths along columns where the official code puts them:
            on grids that are not square in other cells than their own. None does so with
            `stage_norm`, for those weights were trained on such grids.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        *,
        embed_dim: int = 192,
        depth: int = 20,
        scan_order: str | Sequence[str] = tuple(SEARCHED),
        class_token: bool = False,
        rotary_cells: int = 14,
        stage_norm: bool = False,
        scrambled_columns: bool | None = None,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        orders = [order_of_block(scan_order, block) for block in range(depth)]
        taps = quarters(depth) if stage_norm else None

        def norm() -> nn.Module:
            make = nn.LayerNorm if stage_norm else RmsNorm
            return make(embed_dim, eps=1e-5, **dd)

        super().__init__(
            PaddedPatchEmbed(
                to_pair(img_size),
                patch_size,
                patch_size,
                in_chans,
                embed_dim,
                dynamic_img_size=dynamic_img_size,
                **dd,
            ),
            (
                LocalBlock(embed_dim, norm(), num_paths=num_paths(order), drop_path=rate, **dd)
                for rate, order in zip(rates, orders, strict=True)
            ),
            nn.Identity() if stage_norm else norm(),
            scan_order=orders,
            prefix="middle" if class_token else "none",
            in_chans=in_chans,
            num_classes=0 if stage_norm else num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            drop_rate=drop_rate,
            taps=taps,
            tap_norms=[norm() for _ in taps] if taps else None,
            dynamic_img_size=dynamic_img_size,
            antialias=False,
            **dd,
        )
        self.rotary = None if class_token else ResampledRotary(embed_dim, rotary_cells)
        self.has_tap_norms = stage_norm
        scrambled = stage_norm if scrambled_columns is None else scrambled_columns
        self.scrambled_columns = scrambled and not class_token
        self.init_weights(needs_reset=False)

    def init_parameters(self) -> None:
        """All linear layers alike, those of the step sizes, too; deep stacks small outputs."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
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
        """Rename, and join what the paths hold.

        Raises:
            CheckpointError: The file is of the other kind, or lacks a path.
        """
        rotary = "rope.freqs_cos" in state_dict
        if rotary != (self.rotary is not None):
            raise CheckpointError(f"rotary embeddings {'' if rotary else 'not '}in the file only")
        return join_branches(super().from_official(state_dict))

    def adapt(self, state: StateDict) -> StateDict:
        """Resample the position embedding; leave the classifier out of a dense backbone."""
        if self.has_tap_norms:
            state = {k: v for k, v in state.items() if not k.startswith(("norm.", "head."))}
        return super().adapt(state)

    def may_be_missing(self, state: StateDict) -> tuple[str, ...]:
        """What a dense backbone has that starts from a classifier."""
        if not self.has_tap_norms:
            return ()
        return ("tap_norms.", *(f"blocks.{i}.norm.bias" for i in range(len(self.blocks))))

    def insert_prefix(self, paths: Tensor, places: list[int], num_patches: int) -> Tensor:
        """Put the class token into the middle of every path, as counted without padding."""
        shifted = torch.where(paths >= places[0], paths + 1, paths)
        token = torch.full_like(paths[:, :1], places[0])
        return torch.cat([shifted[:, : places[0]], token, shifted[:, places[0] :]], dim=1)

    def run_blocks(
        self, x: Tensor, take: list[int], last: int, norm: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens behind block `last`, and the features of the taps `take`."""
        height, width = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        x, paths = self.embed(x)
        cells: dict[str, Tensor] = {}
        for order, table in paths.items():
            if self.scrambled_columns and "columns" in order:
                cells[order] = scrambled_cells(table, x.unflatten(1, (height, width)))
            paths[order] = visit_padding(table, x.shape[1])
        cos, sin = x, x
        if self.rotary is not None:
            cos, sin = self.rotary.tables(height, width, x)
        features: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i <= last:
                if self.rotary is not None:
                    x = self.rotary.turn(x, cos, sin)
                order = self.scan_orders[i]
                table, source = paths[order], cells.get(order)
                if self.has_tap_norms:
                    if self.grad_checkpointing and not torch.jit.is_scripting():
                        feature = checkpoint(block.mix, x, table, source)
                    else:
                        feature = block.mix(x, table, source)  # type: ignore[operator]
                    x = x + block.drop_path(feature)  # type: ignore[operator]
                elif self.grad_checkpointing and not torch.jit.is_scripting():
                    feature = x = checkpoint(block, x, table, source)
                else:
                    feature = x = block(x, table, source)  # type: ignore[operator]
                self.tap(i, feature, take, norm, features)
        return x, features


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


def _cfg(file: str = "", top1: str = "", *more: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": f"{RELEASE}/{file}" if file else "",
        "custom_load": "hf" if file else False,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0" if top1 else None,
        "origin_url": "https://github.com/hunto/LocalMamba",
        "paper_name": "LocalMamba: Visual State Space Model with Windowed Selective Scan",
        "paper_ids": "arXiv:2403.09338",
        "notes": ("family: LocalVim", f"top-1: {top1 or 'untrained'}", *more),
        **kwargs,
    }


_UNSURE = "weights: the official link leads to LocalVMamba-S, and which paths were trained is open"

default_cfgs = generate_default_cfgs(
    {
        "localvim_tiny.in1k": _cfg("local_vim_tiny.ckpt", "76.2"),
        "localvim_tiny_midcls.in1k": _cfg("local_vim_tiny_middle_cls_token.ckpt", "77.8"),
        "localvim_small.in1k": _cfg("", "81.1", _UNSURE),
        "localvim_small_searched.untrained": _cfg("", "", _UNSURE),
        "test_localvim.untrained": _cfg(input_size=(3, 96, 96)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> LocalVim:
    out_indices = quarters(kwargs.get("depth", 20))
    if kwargs.get("stage_norm"):
        out_indices = range(len(out_indices))
    return build_model(LocalVim, variant, pretrained, features=out_indices, **kwargs)


@register_model
def localvim_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T: 8.0 M parameters, 196 tokens."""
    return _create("localvim_tiny", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def localvim_tiny_midcls(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with a class token in the middle: 8.0 M parameters, 197 tokens."""
    args = {"embed_dim": 192, "class_token": True}
    return _create("localvim_tiny_midcls", pretrained, **{**args, **kwargs})


@register_model
def localvim_small(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S as registered by the official code: rows and windows of 2, 27.8 M parameters."""
    args = {"embed_dim": 384, "scan_order": local_orders("h h_flip w2 w2_flip")}
    return _create("localvim_small", pretrained, **{**args, **kwargs})


@register_model
def localvim_small_searched(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S with the paths that were searched for LocalVim-T: 27.8 M parameters."""
    return _create("localvim_small_searched", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def test_localvim(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """A very small LocalVim for tests; no weights."""
    args = {"img_size": 96, "embed_dim": 32, "depth": 4}
    return _create("test_localvim", pretrained, **{**args, **kwargs})
