"""A backbone of tokens on one grid, with optional class token or registers and timm's contract.

Sizes: N batch, H and W image, h and w grid, L = h * w patches, P prefix tokens, C channels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from timm.layers import trunc_normal_
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vimamba.checkpoints import StateDict
from vimamba.layers import (
    GridEmbed,
    PatchEmbed,
    drop_path_rates,
    insert_into_paths,
    insert_tokens,
    pick_tokens,
    resample_tokens,
    scan_parameters,
    split_tokens,
    to_pair,
)
from vimamba.layers.own_gradients import RmsNorm
from vimamba.models._backbone import Backbone, Options, take_orders
from vimamba.scan_orders import num_paths
from vimamba.timm_layers import get_device_dtype, update_model_input_size

__all__ = ["PlainBackbone", "PlainOptions", "PlainParts", "embed_patches", "quarters"]

PREFIXES = ("none", "first", "middle", "last", "spread")


@dataclass(frozen=True, kw_only=True)
class PlainOptions(Options):
    """Further arguments of every model of tokens."""

    global_pool: str = "token"
    img_size: int | tuple[int, int] = 224
    patch_size: int = 16
    dynamic_img_size: bool = False


def embed_patches(
    options: PlainOptions,
    dim: int,
    *,
    stride: int | None = None,
    kind: type[PatchEmbed] = PatchEmbed,
) -> PatchEmbed:
    """One convolution that makes the tokens; patches do not overlap unless `stride` is smaller."""
    return kind(
        to_pair(options.img_size),
        options.patch_size,
        stride or options.patch_size,
        options.in_chans,
        dim,
        dynamic_img_size=options.dynamic_img_size,
        **options.dd,
    )


def rms_norm(dim: int, **dd: Any) -> nn.Module:
    """The norm of Vim and of the models built on it."""
    return RmsNorm(dim, eps=1e-5, **dd)


@dataclass(frozen=True, kw_only=True)
class PlainParts:
    """The parts that a family supplies for a model of tokens.

    Attributes:
        depth: Blocks.
        dim: C.
        block: From (number, drop path rate, number of its paths, device and dtype) to a block,
            which maps tokens (N, P + L, C) and paths (K, T) over them to tokens of the same shape.
        scan_order: One for all blocks, or a list that they take in turn.
        embed: From (options, C) to a module that turns an image into tokens (N, h, w, C).
        norm: Of the tokens, before the classifier.
        fc_norm: Of the pooled features.
        prefix: Position of the prefix tokens: "none"; "first", "middle" or "last" for one; "spread"
            for evenly spaced registers.
        num_prefix_tokens: P, where `prefix` is "spread".
        pos_embed: Learn an embedding of every token's position.
        taps: Blocks whose outputs are features; all if None.
        dense_norm: Of the features of a dense backbone: those of the last block of each quarter,
            and no classifier. None for other models.
        shows_updates: Features are the outputs of `block.update`, which a block adds to the tokens.
        antialias: Resample the position embedding with antialiasing, as timm does, but little
            official code.
    """

    depth: int
    dim: int
    block: Callable[[int, float, int, dict[str, Any]], nn.Module]
    scan_order: str | Sequence[str]
    embed: Callable[[Any, int], GridEmbed] = embed_patches
    norm: Callable[..., nn.Module] = rms_norm
    fc_norm: Callable[..., nn.Module] = nn.Identity
    prefix: str = "none"
    num_prefix_tokens: int = 1
    pos_embed: bool = True
    taps: Sequence[int] | None = None
    dense_norm: Callable[..., nn.Module] | None = None
    shows_updates: bool = False
    antialias: bool = True

    def make_blocks(
        self, scan_orders: Sequence[str], drop_path_rate: float, dd: dict[str, Any]
    ) -> nn.ModuleList:
        """The blocks, with drop path rates that increase up to that of the last."""
        (rates,) = drop_path_rates(drop_path_rate, [self.depth])
        return nn.ModuleList(
            self.block(i, rate, num_paths(order), dd)
            for i, (rate, order) in enumerate(zip(rates, scan_orders, strict=True))
        )


class PlainBackbone(Backbone):
    """Patches of one grid, prefix tokens at fixed positions among them, blocks, norm, classifier.

    Args:
        parts: The family's parts.
        img_size: Height and width that fix the position embedding.
        patch_size: Side of a patch.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (the prefix tokens), "avg" (the patches) or "".
        dynamic_img_size: Accept any image size and resample the position embedding in each pass.
        device, dtype: Device and dtype of the parameters.
    """

    options = PlainOptions
    dense: ClassVar[Mapping[str, Any]] = {"dynamic_img_size": True}
    # TorchScript does not compile the branch that is not taken
    __constants__ = ("shows_updates",)

    def __init__(self, parts: PlainParts, /, **given: Any) -> None:
        super().__init__()
        options: PlainOptions = self.read_options(given)
        dd, dim = options.dd, parts.dim
        if parts.prefix not in PREFIXES:
            raise ValueError(f"class_token={parts.prefix!r} is unknown; choose from {PREFIXES}")
        self.prefix = parts.prefix
        self.num_prefix_tokens = 0 if parts.prefix == "none" else parts.num_prefix_tokens
        self.has_tap_norms = parts.dense_norm is not None
        self.in_chans = options.in_chans
        self.num_classes = 0 if self.has_tap_norms else options.num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        pools_nothing = parts.prefix == "none" and options.global_pool == "token"
        self.global_pool = self._checked_pool("avg" if pools_nothing else options.global_pool)
        self.antialias = parts.antialias
        self.grad_checkpointing = False

        self.patch_embed = parts.embed(options, dim)
        self.dynamic_img_size = not self.patch_embed.strict_img_size
        self.cls_token = None
        if self.num_prefix_tokens:
            self.cls_token = nn.Parameter(torch.empty(1, self.num_prefix_tokens, dim, **dd))
        tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        self.pos_embed = (
            nn.Parameter(torch.empty(1, tokens, dim, **dd)) if parts.pos_embed else None
        )
        self.pos_drop = nn.Dropout(options.drop_rate)
        # that of every block
        self.scan_orders = list(islice(take_orders(parts.scan_order), parts.depth))
        self.blocks = parts.make_blocks(self.scan_orders, options.drop_path_rate, dd)
        self.norm = nn.Identity() if self.has_tap_norms else parts.norm(dim, **dd)
        self.fc_norm = parts.fc_norm(dim, **dd)
        self.head = self._new_head()
        taps = quarters(parts.depth) if self.has_tap_norms else parts.taps
        self.taps = list(range(parts.depth) if taps is None else taps)
        tap_norm = parts.dense_norm or nn.Identity
        self.tap_norms = nn.ModuleList(tap_norm(dim, **dd) for _ in self.taps)
        self.shows_updates = parts.shows_updates
        stride = self.patch_embed.stride[0]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": stride, "module": f"blocks.{b}"} for b in self.taps
        ]

    @classmethod
    def default_features(cls, given: Mapping[str, Any]) -> Sequence[int]:
        """The last block of each quarter; a dense backbone has no others."""
        found = quarters({**cls.arguments(), **given}["depth"])
        return range(len(found)) if given.get("stage_norm") else found

    def _checked_pool(self, global_pool: str) -> str:
        allowed = ("token", "avg", "") if self.num_prefix_tokens else ("avg", "")
        if global_pool not in allowed:
            raise ValueError(f"global_pool={global_pool!r} is unknown; choose from {allowed}")
        return global_pool

    def _new_head(self) -> nn.Module:
        if not self.num_classes:
            return nn.Identity()
        dd: dict[str, Any] = get_device_dtype(self.patch_embed)
        head = nn.Linear(self.head_hidden_size, self.num_classes, **dd)
        return head.train(self.training)

    def init_parameters(self) -> None:
        """Initialize embeddings and classifier as in DeiT."""
        for embedding in (self.pos_embed, self.cls_token):
            if embedding is not None:
                trunc_normal_(embedding, std=0.02)
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of the embeddings and the scans' parameters."""
        embeddings = {name for name in ("pos_embed", "cls_token") if name in self._parameters}
        return embeddings | scan_parameters(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        return {
            "stem": r"^(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^(?:norm|tap_norms|pyramid)", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in every block."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer; with 0 classes, the output is the pooled features."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self._checked_pool(global_pool)
        self.head = self._new_head()

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Resample the position embedding, except for the prefix tokens, to another image size.

        Raises:
            ValueError: `patch_size` differs from the model's.
        """
        if patch_size is not None and to_pair(patch_size) != self.patch_embed.patch_size:
            raise ValueError(f"patch_size={patch_size} must stay {self.patch_embed.patch_size}")
        if img_size is not None:
            old = self.patch_embed.grid_size
            self.patch_embed.set_input_size(to_pair(img_size))
            if self.pos_embed is not None:
                new = self._resample(self.pos_embed.detach(), old, self.patch_embed.grid_size)
                self.pos_embed = nn.Parameter(new, requires_grad=self.pos_embed.requires_grad)
        update_model_input_size(self, self.patch_embed.img_size)

    def img_sizes_of(self, num_rows: int) -> list[int | tuple[int, int]]:
        """Image sizes that a position embedding with this many rows may be for.

        The rows may include those of the prefix tokens, or an official file stores these
        separately. Of the grids with the right number of cells, the one closest to a square is
        taken.
        """
        found: list[int | tuple[int, int]] = []
        for cells in dict.fromkeys((num_rows - self.num_prefix_tokens, num_rows)):
            height = next((h for h in range(math.isqrt(cells), 0, -1) if cells % h == 0), 0)
            if height:
                size = self.patch_embed.img_size_of((height, cells // height))
                found.append(size[0] if size[0] == size[1] else size)
        return found

    def adapt(self, state: StateDict) -> StateDict:
        """Resample a position embedding of the variant's default size; other sizes are refused.

        A dense backbone leaves the classifier out, from which it may start.
        """
        if self.has_tap_norms:
            state = {k: v for k, v in state.items() if not k.startswith(("norm.", "head."))}
        embedding = state.get("pos_embed")
        if embedding is None or self.pos_embed is None:
            return state
        # set by timm 1.0.31 and later
        args: Mapping[str, Any] = getattr(self, "pretrained_model_args", None) or {}
        cfg: Mapping[str, Any] = self.pretrained_cfg  # type: ignore[assignment]
        size = args.get("img_size") or cfg["input_size"][-2:]
        old = self.patch_embed.dynamic_feat_size(to_pair(size))
        if embedding.shape[1] == old[0] * old[1] + self.num_prefix_tokens:
            embedding = self._resample(embedding, old, self.patch_embed.grid_size)
        return {**state, "pos_embed": embedding}

    def may_be_missing(self, state: StateDict) -> tuple[str, ...]:
        """The norms of a dense backbone, which may start from a classifier."""
        return ("tap_norms.",) if self.has_tap_norms else ()

    def places(self, num_patches: int) -> list[int]:
        """Indices of the prefix tokens in the sequence of all tokens."""
        if self.prefix == "none":
            return []
        if self.prefix == "spread":
            gap = num_patches // (self.num_prefix_tokens + 1)
            return [gap + i * (gap + 1) for i in range(self.num_prefix_tokens)]
        if self.prefix == "first":
            return [0]
        return [num_patches // 2 if self.prefix == "middle" else num_patches]

    def _resample(self, pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
        """Resample (1, P + L, C): the prefix tokens' rows are taken out and put back."""
        places = self.places(old[0] * old[1])
        patches, prefix = split_tokens(pos_embed, places)
        patches = resample_tokens(patches, old, new, self.antialias)
        return insert_tokens(patches, prefix, self.places(new[0] * new[1]))

    def grid_paths(self, x: Tensor) -> dict[str, Tensor]:
        """The paths of each scan order on the grid of x (N, h, w, C)."""
        paths: dict[str, Tensor] = {}
        for order in self.scan_orders:
            if order not in paths:
                paths[order] = torch.ops.vimamba.scan_paths(x, order)
        return paths

    def embed(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens (N, P + L, C) including the prefix tokens, and the paths of each scan order."""
        x = self.patch_embed(x)
        height, width = x.shape[1], x.shape[2]
        paths = self.grid_paths(x)
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            num_patches = x.shape[1]
            places = self.places(num_patches)
            x = insert_tokens(x, self.cls_token.expand(x.shape[0], -1, -1), places)
            for order, table in paths.items():
                paths[order] = self.insert_prefix(table, places, num_patches)
        if self.pos_embed is not None:
            pos_embed = self.pos_embed
            if self.dynamic_img_size:
                pos_embed = self._resample(pos_embed, self.patch_embed.grid_size, (height, width))
            x = x + pos_embed
        return self.pos_drop(x), paths

    def insert_prefix(self, paths: Tensor, places: list[int], num_patches: int) -> Tensor:
        """Extend paths over the L patches by the prefix tokens."""
        return insert_into_paths(paths, places, num_patches)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to normalized tokens (N, P + L, C), including the prefix tokens."""
        none = torch.jit.annotate(list[int], [])
        return self.norm(self.run_blocks(x, none, len(self.blocks) - 1, False)[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (N, P + L, C) to (N, num_classes)."""
        if self.global_pool != "":
            places = self.places(x.shape[1] - self.num_prefix_tokens)
            if self.global_pool == "token":
                # not a plain index, for which torch.compile would make a program per position
                x = pick_tokens(x, places).mean(dim=1)
            else:
                x = self.average(split_tokens(x, places)[0])
            x = self.fc_norm(x)
        return x if pre_logits else self.head(x)

    def average(self, patches: Tensor) -> Tensor:
        """Pool the patches (N, L, C) for "avg": (N, C)."""
        return patches.mean(dim=1)

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
        """Features of the chosen taps, by default blocks; see timm's `forward_intermediates`."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown; choose NCHW or NLC")
        take, last = feature_take_indices(len(self.taps), indices)
        last = self.taps[last] if stop_early else len(self.blocks) - 1
        height, width = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        x, features = self.run_blocks(x, take, last, norm)
        features, prefix = self._split_prefix(features)
        if output_fmt == "NCHW":
            features = self.to_maps(features, take, height, width)
        if return_prefix_tokens:
            features = list(zip(features, prefix, strict=True))  # type: ignore[assignment]
        return features if intermediates_only else (self.norm(x), features)

    def forward_maps(self, x: Tensor, indices: list[int], norm: bool) -> list[Tensor]:
        """Features (N, C, h, w) of the chosen taps; also in TorchScript."""
        height, width = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        features = self.run_blocks(x, indices, len(self.blocks) - 1, norm)[1]
        return self.to_maps(self._split_prefix(features)[0], indices, height, width)

    def run_blocks(
        self, x: Tensor, take: list[int], last: int, norm: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens after block `last`, and the features of the taps `take`."""
        grid = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        x, paths = self.embed(x)
        paths, context = self.prepare(x, paths, grid)
        features: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i <= last:
                x, paths = self.enter_block(i, x, paths, context, grid)
                table = paths[self.scan_orders[i]]
                if self.shows_updates:
                    if self.grad_checkpointing and not torch.jit.is_scripting():
                        feature = checkpoint(block.update, x, table)
                    else:
                        feature = block.update(x, table)  # type: ignore[operator]
                    x = x + block.drop_path(feature)  # type: ignore[operator]
                elif self.grad_checkpointing and not torch.jit.is_scripting():
                    feature = x = checkpoint(block, x, table)
                else:
                    feature = x = block(x, table)
                self.tap(i, self.shown(i, feature, context), take, norm, features)
        return x, features

    def prepare(
        self, x: Tensor, paths: dict[str, Tensor], grid: tuple[int, int]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The paths as blocks take them, and what else `enter_block` needs for all blocks."""
        return paths, torch.jit.annotate(list[Tensor], [])

    def enter_block(
        self,
        block: int,
        x: Tensor,
        paths: dict[str, Tensor],
        context: list[Tensor],
        grid: tuple[int, int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The input of a block, and the paths for it and later blocks."""
        return x, paths

    def shown(self, block: int, feature: Tensor, context: list[Tensor]) -> Tensor:
        """The feature in the form that is returned."""
        return feature

    def tap(
        self, block: int, x: Tensor, take: list[int], norm: bool, features: list[Tensor]
    ) -> None:
        """Append the normed output of a block to the features, if it is one of those to take."""
        for t, tap_norm in enumerate(self.tap_norms):
            if t in take and self.taps[t] == block:
                feature = tap_norm(x)
                features.append(self.norm(feature) if norm else feature)

    def to_maps(
        self, features: list[Tensor], taps: list[int], height: int, width: int
    ) -> list[Tensor]:
        """Tokens (N, L, C) of the patches to maps (N, C, h, w)."""
        grid = (height, width)
        return [f.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for f in features]

    def _split_prefix(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Separate the prefix tokens (N, P, C) from every feature."""
        patches: list[Tensor] = []
        prefix: list[Tensor] = []
        for feature in features:
            places = self.places(feature.shape[1] - self.num_prefix_tokens)
            parts = split_tokens(feature, places)
            patches.append(parts[0])
            prefix.append(parts[1])
        return patches, prefix

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the chosen features do not need; gives back their absolute indices."""
        take, last = feature_take_indices(len(self.taps), indices)
        self.blocks = self.blocks[: self.taps[last] + 1]
        self.taps, self.tap_norms = self.taps[: last + 1], self.tap_norms[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return take


def quarters(depth: int) -> list[int]:
    """The last block of each quarter of a stack: where features are taken by default."""
    return sorted({math.ceil(depth * part / 4) - 1 for part in (1, 2, 3, 4)})
