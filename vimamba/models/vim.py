"""Vim, Vision Mamba (Zhu et al. 2024, arXiv:2401.09417): a plain stack of bidirectional Mamba.

Patches become tokens, the class token stands in their middle, and every block mixes them along a
path and its reverse. The residual stream is never normed; each block norms what it reads.

Official code: https://github.com/hustvl/Vim (Apache-2.0)
Sizes: N batch, H and W image, h and w grid, L = h * w patches, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import RmsNorm, lecun_normal_, trunc_normal_
from timm.layers.helpers import get_device_dtype
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from vimamba.checkpoints import (
    CheckpointError,
    StateDict,
    check_fit,
    known_names,
    load_official,
    rename_keys,
    unwrap,
)
from vimamba.layers import (
    MambaMixer,
    PatchEmbed,
    RotaryEmbed,
    SimplePyramid,
    drop_path_rates,
    insert_class_token,
    scan_parameters,
    to_pair,
)
from vimamba.layers.mamba import VimBlock
from vimamba.layers.tokens import resample_tokens
from vimamba.models._builder import build_model
from vimamba.scan_orders import num_paths, order_of_block

__all__ = ["VisionMamba"]

CLASS_TOKENS = ("middle", "first", "none")


class VisionMamba(nn.Module):
    """Vim backbone with a classifier.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size, stride: Of the patch convolution; `stride` is `patch_size` if None.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (class token), "avg" or "".
        embed_dim: C.
        depth: Blocks.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take by turns.
        class_token: "middle", "first" or "none".
        average_paths: Divide a mixer's sum over the paths by their number.
        rotary: Rotate the residual stream before every block (first generation, detection).
        pyramid: Four blocks whose outputs, without the residual stream, become maps of strides
            4, 8, 16 and 32: the published tiny segmentation backbone. It has no classifier.
        pyramid_residual: The maps come from the residual stream, as the next block reads it: the
            published small segmentation backbone, which is also `rotary`.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        *,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "bidirectional",
        class_token: str = "middle",
        average_paths: bool = True,
        rotary: bool = False,
        pyramid: tuple[int, ...] | None = None,
        pyramid_residual: bool = False,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if class_token not in CLASS_TOKENS:
            raise ValueError(f"class_token={class_token!r} is unknown; choose from {CLASS_TOKENS}")
        if class_token == "none" and global_pool == "token":
            global_pool = "avg"
        dd = {"device": device, "dtype": dtype}
        stride = stride or patch_size
        self.in_chans = in_chans
        self.num_classes = 0 if pyramid else num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.global_pool = self._checked_pool(global_pool, class_token)
        self.class_token = class_token
        self.num_prefix_tokens = int(class_token != "none")
        # that of every block
        self.scan_orders = [order_of_block(scan_order, block) for block in range(depth)]
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False

        self.patch_embed = PatchEmbed(
            to_pair(img_size),
            patch_size,
            stride,
            in_chans,
            embed_dim,
            dynamic_img_size=dynamic_img_size,
            **dd,
        )
        tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        has_token = class_token != "none"
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd)) if has_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, embed_dim, **dd))
        self.pos_drop = nn.Dropout(drop_rate)
        self.rotary = RotaryEmbed(embed_dim) if rotary else None
        mixer = {"d_state": d_state, "average_paths": average_paths}
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        self.blocks = nn.ModuleList(
            VimBlock(embed_dim, drop_path=rate, dd=dd, num_paths=num_paths(order), **mixer)
            for rate, order in zip(rates, self.scan_orders, strict=True)
        )
        self.norm = RmsNorm(embed_dim, eps=1e-5, **dd)
        self.head = self._new_head()
        if pyramid and (len(pyramid) != 4 or [*pyramid] != sorted({*pyramid} & {*range(depth)})):
            raise ValueError(f"pyramid={pyramid} must be four rising numbers of the {depth} blocks")
        if pyramid_residual and not pyramid:
            raise ValueError("pyramid_residual=True needs pyramid=(…), four of the blocks")
        self.pyramid_blocks = pyramid
        self.pyramid_residual = pyramid_residual
        self.pyramid = SimplePyramid(embed_dim, **dd) if pyramid else None
        self.feature_info = self._describe_features(depth, stride)
        self.init_weights(needs_reset=False)

    def _checked_pool(self, global_pool: str, class_token: str) -> str:
        allowed = ("token", "avg", "") if class_token != "none" else ("avg", "")
        if global_pool not in allowed:
            raise ValueError(f"global_pool={global_pool!r} is unknown; choose from {allowed}")
        return global_pool

    def _new_head(self) -> nn.Module:
        if not self.num_classes:
            return nn.Identity()
        dd: dict[str, Any] = get_device_dtype(self.patch_embed)
        head = nn.Linear(self.embed_dim, self.num_classes, **dd)
        return head.train(self.training)

    def _describe_features(self, depth: int, stride: int) -> list[dict[str, Any]]:
        if self.pyramid_blocks:
            strides = (stride // 4, stride // 2, stride, stride * 2)
            taps = [(f"blocks.{b}", s) for b, s in zip(self.pyramid_blocks, strides, strict=True)]
        else:
            taps = [(f"blocks.{b}", stride) for b in range(depth)]
        return [{"num_chs": self.embed_dim, "reduction": s, "module": name} for name, s in taps]

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Start all parameters as the official code does.

        Args:
            mode: Only "" is known.
            needs_reset: Also reset layers that start themselves, as after `to_empty()`.
        """
        if mode:
            raise ValueError(f"mode={mode!r} is unknown; only '' is")
        if needs_reset:
            for module in self.modules():
                if module is not self and hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        lecun_normal_(self.patch_embed.proj.weight)
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]
        for embedding in (self.pos_embed, self.cls_token):
            if embedding is not None:
                trunc_normal_(embedding, std=0.02)
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        for block in self.blocks:
            mixer: MambaMixer = block.mixer  # type: ignore[assignment]
            with torch.no_grad():
                mixer.dt_bias[1:].zero_()  # only the first path gets the step sizes of Mamba
                nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
                mixer.out_proj.weight /= math.sqrt(len(self.blocks))

    def no_weight_decay(self) -> set[str]:
        """Names of the embeddings and of the scans' parameters."""
        embeddings = {name for name in ("pos_embed", "cls_token") if name in self._parameters}
        return embeddings | scan_parameters(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        return {
            "stem": r"^(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^(?:norm|pyramid)", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in every block."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer; 0 classes leave pooled features."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self._checked_pool(global_pool, self.class_token)
        self.head = self._new_head()

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Resample the position embedding, around the class token, to another image size.

        Raises:
            ValueError: `patch_size` is another than the model's.
        """
        if patch_size is not None and to_pair(patch_size) != self.patch_embed.patch_size:
            raise ValueError(f"patch_size={patch_size} must stay {self.patch_embed.patch_size}")
        if img_size is not None:
            old = self.patch_embed.grid_size
            self.patch_embed.set_input_size(to_pair(img_size))
            resampled = self._resample(self.pos_embed.detach(), old, self.patch_embed.grid_size)
            self.pos_embed = nn.Parameter(resampled, requires_grad=self.pos_embed.requires_grad)
        update_model_input_size(self, self.patch_embed.img_size)

    def load_pretrained(self, path: str) -> None:
        """Load an official file strictly."""
        load_official(self, path, checkpoint_filter_fn)

    def _class_index(self, num_patches: int) -> int:
        return num_patches // 2 if self.class_token == "middle" else 0

    def _resample(self, pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
        """Resample (1, L + 1, C): the class token's row is taken out and put back."""
        if self.num_prefix_tokens == 0:
            return resample_tokens(pos_embed, old, new)
        p = self._class_index(old[0] * old[1])
        patches = torch.cat([pos_embed[:, :p], pos_embed[:, p + 1 :]], dim=1)
        patches = resample_tokens(patches, old, new)
        q = self._class_index(new[0] * new[1])
        return torch.cat([patches[:, :q], pos_embed[:, p : p + 1], patches[:, q:]], dim=1)

    def _embed(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Tokens (N, T, C) with the class token among them, paths of each order, rotary angles."""
        x = self.patch_embed(x)
        height, width = x.shape[1], x.shape[2]
        paths: dict[str, Tensor] = {}
        for order in self.scan_orders:
            if order not in paths:
                paths[order] = torch.ops.vimamba.scan_paths(x, order)
        pos_embed = self.pos_embed
        if self.dynamic_img_size:
            pos_embed = self._resample(pos_embed, self.patch_embed.grid_size, (height, width))
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            p = self._class_index(x.shape[1])
            token = self.cls_token.expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :p], token, x[:, p:]], dim=1)
            for order, table in paths.items():
                paths[order] = insert_class_token(table, p, self.class_token == "first")
        x = self.pos_drop(x + pos_embed)
        angles: Tensor | None = None
        if self.rotary is not None:
            angles = self.rotary.angles(height, width, x)
        return x, paths, angles

    def _rotate(self, x: Tensor, angles: Tensor | None) -> Tensor:
        """Rotate the patches' tokens, not the class token."""
        if self.rotary is None or angles is None:
            return x
        if self.cls_token is None:
            return self.rotary(x, angles)
        p = self._class_index(x.shape[1] - 1)
        before, after = self.rotary(x[:, :p], angles[:p]), self.rotary(x[:, p + 1 :], angles[p:])
        return torch.cat([before, x[:, p : p + 1], after], dim=1)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to normed tokens (N, L + 1, C), the class token among them."""
        x, paths, angles = self._embed(x)
        for i, block in enumerate(self.blocks):
            x = self._rotate(x, angles)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, paths[self.scan_orders[i]])
            else:
                x = block(x, paths[self.scan_orders[i]])
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (N, L + 1, C) to (N, num_classes)."""
        if self.global_pool != "":
            p = self._class_index(x.shape[1] - 1)
            if self.global_pool == "token":
                # no plain index: torch.compile would make a program for each position
                x = x[:, p : p + 1].squeeze(1)
            elif self.num_prefix_tokens == 1:
                x = torch.cat([x[:, :p], x[:, p + 1 :]], dim=1).mean(dim=1)
            else:
                x = x.mean(dim=1)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features of the chosen blocks; see timm's `forward_intermediates`.

        A feature is the residual stream after a block. A model with `pyramid` gives its four maps
        instead, and `indices` choose among these.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown; choose NCHW or NLC")
        taps = self.pyramid_blocks or tuple(range(len(self.blocks)))
        take, last = feature_take_indices(len(taps), indices)
        last = taps[last] if stop_early else len(self.blocks) - 1
        height, width = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        x, features = self._run_blocks(x, [taps[i] for i in take], last, norm)
        features, prefix = self._split_prefix(features)
        if output_fmt == "NCHW":
            features = self._to_maps(features, take, height, width)
        if return_prefix_tokens:
            features = list(zip(features, prefix, strict=True))  # type: ignore[assignment]
        return features if intermediates_only else (self.norm(x), features)

    def forward_maps(self, x: Tensor, indices: list[int], norm: bool) -> list[Tensor]:
        """Features (N, C, h, w) of the chosen blocks, in TorchScript, too."""
        height, width = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        blocks = indices
        if self.pyramid_blocks is not None:
            blocks = [self.pyramid_blocks[i] for i in indices]
        features = self._run_blocks(x, blocks, len(self.blocks) - 1, norm)[1]
        return self._to_maps(self._split_prefix(features)[0], indices, height, width)

    def _run_blocks(
        self, x: Tensor, take: list[int], last: int, norm: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens behind block `last`, and the features of the blocks `take`."""
        x, paths, angles = self._embed(x)
        features: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i <= last:
                x = self._rotate(x, angles)
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    update = checkpoint(block.update, x, paths[self.scan_orders[i]])
                else:
                    update = block.update(x, paths[self.scan_orders[i]])  # type: ignore[operator]
                x = x + update
                if i in take:
                    feature = x
                    if self.pyramid_residual and i < len(self.blocks) - 1:
                        feature = self._rotate(x, angles)
                    elif self.pyramid is not None and not self.pyramid_residual:
                        feature = update
                    features.append(self.norm(feature) if norm else feature)
        return x, features

    def _to_maps(
        self, features: list[Tensor], levels: list[int], height: int, width: int
    ) -> list[Tensor]:
        """Tokens (N, L, C) to maps, those of a pyramid at its levels."""
        maps: list[Tensor] = []
        for feature, level in zip(features, levels):  # noqa: B905  TorchScript knows no `strict`
            grid = feature.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous()
            maps.append(grid if self.pyramid is None else self.pyramid(grid, level))
        return maps

    def _split_prefix(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Take the class token (N, 1, C) out of every feature."""
        if self.cls_token is None:
            return features, [f[:, :0] for f in features]
        p = self._class_index(features[0].shape[1] - 1) if features else 0
        patches = [torch.cat([f[:, :p], f[:, p + 1 :]], dim=1) for f in features]
        return patches, [f[:, p : p + 1] for f in features]

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the chosen features do not need; gives back their absolute indices."""
        taps = self.pyramid_blocks or tuple(range(len(self.blocks)))
        take, last = feature_take_indices(len(taps), indices)
        self.blocks = self.blocks[: taps[last] + 1]
        if self.pyramid_blocks:
            self.pyramid_blocks = taps[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take


_MIXER = r"layers\.(\d+)\.mixer\."
# "@0" and "@1" mark the forward and the backward branch, which share one parameter here
CHECKPOINT_KEYS = {
    r"(cls_token|pos_embed)": r"\1",
    r"(patch_embed\.proj|head)\.(weight|bias)": r"\1.\2",
    r"norm_f\.weight": "norm.weight",
    r"layers\.(\d+)\.norm\.weight": r"blocks.\1.norm.weight",
    _MIXER + r"(in_proj|out_proj)\.weight": r"blocks.\1.mixer.\2.weight",
    _MIXER + r"(x_proj|dt_proj)\.weight": r"blocks.\1.mixer.\2.0.weight",
    _MIXER + r"(x_proj|dt_proj)_b\.weight": r"blocks.\1.mixer.\2.1.weight",
    _MIXER + r"conv1d\.(weight|bias)": r"blocks.\1.mixer.conv.\2@0",
    _MIXER + r"conv1d_b\.(weight|bias)": r"blocks.\1.mixer.conv.\2@1",
    _MIXER + r"dt_proj\.bias": r"blocks.\1.mixer.dt_bias@0",
    _MIXER + r"dt_proj_b\.bias": r"blocks.\1.mixer.dt_bias@1",
    _MIXER + r"(A_log|D)": r"blocks.\1.mixer.\2@0",
    _MIXER + r"A_b_log": r"blocks.\1.mixer.A_log@1",
    _MIXER + r"D_b": r"blocks.\1.mixer.D@1",
    r"fpn1\.(.*)": r"pyramid.levels.0.\1",
    r"fpn2\.(.*)": r"pyramid.levels.1.\1",
    r"rope\.freqs_(?:cos|sin)": None,
}
_OFFICIAL_PATHS = 2


_DENSE = {"img_size": 512, "class_token": "none", "pyramid": (5, 11, 17, 23)}
_DENSE_ROTARY = {**_DENSE, "rotary": True, "pyramid_residual": True}
CHECKPOINT_LAYOUTS: tuple[dict[str, Any], ...] = ({}, _DENSE, _DENSE_ROTARY)


def _from_official(state_dict: StateDict) -> StateDict:
    """Rename, and join what the two branches hold."""
    renamed = rename_keys(state_dict, CHECKPOINT_KEYS)
    state: StateDict = {}
    for key, value in renamed.items():
        name, _, branch = key.partition("@")
        if not branch:
            state[key] = value
        elif branch == "0":
            pair = [renamed.get(f"{name}@{k}") for k in range(_OFFICIAL_PATHS)]
            if any(b is None for b in pair):
                raise CheckpointError(f"{name!r} is there for one direction only")
            join = torch.cat if ".conv." in name else torch.stack
            state[name] = join(pair)  # type: ignore[arg-type]
    return state


def _resize_embedding(state: StateDict, model: nn.Module, first: bool) -> None:
    """Bring `pos_embed` to the model's grid and class token, where the file is for another size."""
    assert isinstance(model, VisionMamba)
    if "cls_token" in state and model.cls_token is None:
        del state["cls_token"]
        rows = state["pos_embed"]
        p = 0 if first else (rows.shape[1] - 1) // 2
        state["pos_embed"] = torch.cat([rows[:, :p], rows[:, p + 1 :]], dim=1)
    args: Mapping[str, Any] = model.pretrained_model_args or {}  # type: ignore[assignment]
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    size = args.get("img_size") or cfg["input_size"][-2:]
    old = model.patch_embed.dynamic_feat_size(to_pair(size))
    if state["pos_embed"].shape[1] == old[0] * old[1] + model.num_prefix_tokens:
        resample = model._resample
        state["pos_embed"] = resample(state["pos_embed"], old, model.patch_embed.grid_size)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> StateDict:
    """Adapt official weights; weights under our names pass through.

    A position embedding of the variant's own size is resampled to the model's; any other size
    belongs to another variant and is refused.
    """
    state = unwrap(state_dict, known_names(model, CHECKPOINT_KEYS))
    rotary = "rope.freqs_cos" in state
    if not any(k.startswith("blocks.") for k in state):
        if rotary != (model.rotary is not None):
            raise CheckpointError(f"rotary embeddings {'' if rotary else 'not '}in the file only")
        state = _from_official(state)
    if "pos_embed" in state:
        _resize_embedding(state, model, first=rotary)
    is_backbone = "head.weight" not in state
    return check_fit(state, model, fresh=("pyramid.", "norm.") if is_backbone else ("pyramid.",))


def _cfg(file: str = "", top1: str = "", hub: str = "", **kwargs: Any) -> dict[str, Any]:
    generation = kwargs.pop("generation", "class token in the middle (February 2024)")
    return {
        "hf_hub_id": f"hustvl/{hub}" if file else None,
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
        "license": "apache-2.0" if top1 else None,
        "origin_url": "https://github.com/hustvl/Vim",
        "paper_name": "Vision Mamba: Efficient Visual Representation Learning with Bidirectional "
        "State Space Model",
        "paper_ids": "arXiv:2401.09417",
        "notes": ("family: Vim", f"generation: {generation}", f"top-1: {top1 or 'untrained'}"),
        **kwargs,
    }


_TINY, _SMALL, _BASE = (f"Vim-{size}-midclstok" for size in ("tiny", "small", "base"))

default_cfgs = generate_default_cfgs(
    {
        "vim_tiny_patch16_224.midclstok_in1k": _cfg("vim_t_midclstok_76p1acc.pth", "76.1", _TINY),
        "vim_small_patch16_224.midclstok_in1k": _cfg("vim_s_midclstok_80p5acc.pth", "80.5", _SMALL),
        "vim_base_patch16_224.midclstok_in1k": _cfg("vim_b_midclstok_81p9acc.pth", "81.9", _BASE),
        "vim_tiny_patch16_stride8_224.midclstok_ft_in1k": _cfg(
            "vim_t_midclstok_ft_78p3acc.pth", "78.3", _TINY
        ),
        "vim_small_patch16_stride8_224.midclstok_ft_in1k": _cfg(
            "vim_s_midclstok_ft_81p6acc.pth", "81.6", _SMALL
        ),
        "vim_tiny_rope_patch16_224.in1k": _cfg(
            top1="73.1", generation="rotary embedding, class token in front (January 2024)"
        ),
        "test_vim.untrained": _cfg(input_size=(3, 96, 96)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VisionMamba:
    depth = kwargs.get("depth", 24)
    quarters = sorted({math.ceil(depth * part / 4) - 1 for part in (1, 2, 3, 4)})
    out_indices = (0, 1, 2, 3) if kwargs.get("pyramid") else quarters
    options = {"filter_fn": checkpoint_filter_fn, "features": out_indices}
    return build_model(VisionMamba, variant, pretrained, **options, **kwargs)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti: 7.1 M parameters, 197 tokens."""
    return _create("vim_tiny_patch16_224", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S: 25.8 M parameters, 197 tokens."""
    return _create("vim_small_patch16_224", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-B: 97.6 M parameters, 197 tokens."""
    return _create("vim_base_patch16_224", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti+: patches overlap by half, 730 tokens."""
    args = {"embed_dim": 192, "stride": 8}
    return _create("vim_tiny_patch16_stride8_224", pretrained, **{**args, **kwargs})


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S+: patches overlap by half, 730 tokens."""
    args = {"embed_dim": 384, "stride": 8}
    return _create("vim_small_patch16_stride8_224", pretrained, **{**args, **kwargs})


@register_model
def vim_tiny_rope_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti of January 2024: rotary embedding, class token in front, paths summed."""
    args = {"embed_dim": 192, "rotary": True, "class_token": "first", "average_paths": False}
    return _create("vim_tiny_rope_patch16_224", pretrained, **{**args, **kwargs})


@register_model
def test_vim(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """A very small Vim for tests; no weights."""
    args = {"img_size": 96, "embed_dim": 48, "depth": 4, "d_state": 8}
    return _create("test_vim", pretrained, **{**args, **kwargs})
