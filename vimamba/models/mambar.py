"""Mamba-R, also Mamba-Reg (Wang et al. 2024, arXiv:2405.14858): Vim with registers.

The registers are class tokens, evenly spaced among the patches. At the end their outputs are
reduced, concatenated and classified.

Official code: https://github.com/wangf3014/Mamba-Reg (no license file)
Sizes: N batch, H and W image, L patches, P registers, C channels, Q reduction.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import trunc_normal_
from timm.models import register_model
from torch import Tensor, nn

from vimamba.checkpoints import CheckpointError, StateDict, register_family
from vimamba.layers import (
    init_patches_,
    init_vim_blocks_,
    insert_tokens,
    join_branches,
    make_vim_block,
    pick_tokens,
    split_tokens,
)
from vimamba.layers.own_gradients import RmsNorm
from vimamba.models._builder import NO_LICENSE, build_model, make_cfgs
from vimamba.models._plain import PlainBackbone, PlainParts
from vimamba.models.vim import VIM_RULES
from vimamba.timm_layers import get_device_dtype

__all__ = ["MambaReg"]


class RegisterPool(nn.Module):
    """Shorten every register and join them all: (N, P, C) to (N, P * C / Q)."""

    def __init__(self, dim: int, num_registers: int, reduction: int, **dd: Any) -> None:
        super().__init__()
        self.neck: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if reduction > 1:
            self.neck = nn.Linear(dim, dim // reduction, bias=False, **dd)
            self.norm = RmsNorm(num_registers * (dim // reduction), eps=1e-5, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, C) to (N, P * C / Q)."""
        return self.norm(self.neck(x).flatten(1))


class MeanPool(nn.Module):
    """Output of a model without a classifier: the mean of the registers."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, C) to (N, C)."""
        return x.mean(dim=1)


class MambaReg(PlainBackbone):
    """Mamba-Reg backbone with a classifier.

    Args:
        img_size: Height and width that fix the position embedding.
        patch_size: Side of a patch.
        in_chans, num_classes, drop_rate, drop_path_rate: As in timm.
        global_pool: "token" (all registers, joined; their mean in a model made without classes),
            "avg" (the patches) or "".
        embed_dim: C.
        depth: Blocks.
        num_registers: P.
        reduction: Q, a divisor of C; 1 leaves the registers as they are.
        d_state: States per channel of the scan.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        dynamic_img_size: Take any image size and resample the position embedding on the way.
        device, dtype: Device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 24,
        num_registers: int = 12,
        reduction: int = 2,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "bidirectional",
        **options: Any,
    ) -> None:
        if reduction < 1 or embed_dim % reduction:
            raise ValueError(f"reduction={reduction} must divide the {embed_dim} channels")
        if num_registers < 1:
            raise ValueError(f"num_registers={num_registers} must be at least 1")
        parts = PlainParts(
            depth=depth,
            dim=embed_dim,
            block=partial(make_vim_block, embed_dim, d_state=d_state),
            scan_order=scan_order,
            prefix="spread",
            num_prefix_tokens=num_registers,
        )
        super().__init__(parts, num_classes=0, **options)
        self.reduction = reduction
        self.pool: nn.Module = MeanPool()
        self.reset_classifier(num_classes)
        self.init_weights(needs_reset=False)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer, and add or remove the registers' pool."""
        pool = self._checked_pool(self.global_pool if global_pool is None else global_pool)
        if pool != "token":
            self.pool = MeanPool()
        elif num_classes and not isinstance(self.pool, RegisterPool):
            dd: dict[str, Any] = get_device_dtype(self.patch_embed)
            sizes = self.embed_dim, self.num_prefix_tokens, self.reduction
            self.pool = RegisterPool(*sizes, **dd).train(self.training)
        joined = self.num_prefix_tokens * (self.embed_dim // self.reduction)
        self.head_hidden_size = joined if isinstance(self.pool, RegisterPool) else self.embed_dim
        super().reset_classifier(num_classes, pool)

    def init_parameters(self) -> None:
        """Embeddings, neck and classifier as in DeiT, blocks as in Vim."""
        super().init_parameters()
        init_patches_(self.patch_embed)
        for module in self.pool.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
        init_vim_blocks_(self.blocks)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename, join the two branches, and put the registers' positions among the patches'.

        Raises:
            CheckpointError: A key matches no rule, a direction is missing, or the number of
                registers differs.
        """
        state = join_branches(super().from_official(state_dict))
        registers = state.pop("pos_embed_registers", None)
        if "pos_embed" not in state or registers is None:
            return state
        if registers.shape[1] != self.num_prefix_tokens:
            found, ours = registers.shape[1], self.num_prefix_tokens
            raise CheckpointError(f"{found} registers in the file, {ours} in the model")
        patches = state["pos_embed"]
        places = self.places(patches.shape[1])
        return {**state, "pos_embed": insert_tokens(patches, registers, places)}

    def adapt(self, state: StateDict) -> StateDict:
        """Resample the position embedding; drop the neck if the model has none."""
        if not isinstance(self.pool, RegisterPool):
            state = {k: v for k, v in state.items() if not k.startswith("pool.")}
        return super().adapt(state)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (N, P + L, C) to (N, num_classes)."""
        if self.global_pool != "":
            places = self.places(x.shape[1] - self.num_prefix_tokens)
            if self.global_pool == "token":
                x = self.pool(pick_tokens(x, places))
            else:
                x = split_tokens(x, places)[0].mean(dim=1)
        return x if pre_logits else self.head(x)


RULES = {
    **VIM_RULES,
    r"pos_embed_cls": "pos_embed_registers",
    r"neck\.weight": "pool.neck.weight",
    r"norm_neck\.weight": "pool.norm.weight",
}
_TOP1 = {
    "mambar_small_patch16_224.in1k": 81.4,
    "mambar_base_patch16_224.in1k": 83.0,
    "mambar_large_patch16_224.in1k": 83.6,
}
register_family("Mamba-R", MambaReg, RULES, top1=_TOP1)

default_cfgs = make_cfgs(
    {
        **{
            f"mambar_{size}_patch16_224.in1k": {"file": f"mambar_{size}_patch16_224.pth"}
            for size in ("small", "base", "large")
        },
        "test_mambar.untrained": {"size": 64},
    },
    hub="Wangf3014/Mamba-Reg",
    license="unknown",
    cell=None,
    fixed_input_size=True,
    crop_pct=1.0,
    first_conv="patch_embed.proj",
    classifier="head",
    origin_url="https://github.com/wangf3014/Mamba-Reg",
    paper_name="Mamba-R: Vision Mamba ALSO Needs Registers",
    paper_ids="arXiv:2405.14858",
    notes=(NO_LICENSE,),
)


@register_model
def mambar_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-S: 27.8 M parameters, 196 patches and 12 registers."""
    sizes = {"embed_dim": 384, "num_registers": 12, "reduction": 2}
    return build_model(MambaReg, "mambar_small_patch16_224", pretrained, kwargs, **sizes)


@register_model
def mambar_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-B: 99.3 M parameters, 196 patches and 12 registers."""
    sizes = {"embed_dim": 768, "num_registers": 12, "reduction": 4}
    return build_model(MambaReg, "mambar_base_patch16_224", pretrained, kwargs, **sizes)


@register_model
def mambar_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-L: 341.2 M parameters, 196 patches and 16 registers."""
    sizes = {"embed_dim": 1024, "depth": 48, "num_registers": 16, "reduction": 8}
    return build_model(MambaReg, "mambar_large_patch16_224", pretrained, kwargs, **sizes)


@register_model
def test_mambar(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """A very small Mamba-Reg for tests; no weights."""
    sizes = {"img_size": 64, "embed_dim": 48, "depth": 4, "num_registers": 3, "d_state": 8}
    return build_model(MambaReg, "test_mambar", pretrained, kwargs, **sizes)
