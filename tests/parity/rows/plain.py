"""Rows of plain models."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity.official import fill, read_manifest
from tests.parity.rows.orders import local_orders
from tests.parity.variants import DENSE, Place, Tap, Variant


def mixers(*blocks: int) -> dict[str, Place]:
    """Stage 0 is the patch embedding, the next ones are the outputs of these blocks' mixers.

    The last stage is what the last block reads.
    """
    behind = {str(stage): f"blocks.{block}.mixer" for stage, block in enumerate(blocks, start=1)}
    last = {str(len(blocks) + 1): Tap(f"blocks.{blocks[-1]}.norm", entering=True)}
    return {"0": "patch_embed", **behind, **last}


def streams(*blocks: int) -> dict[str, Place]:
    """Stage 0 is the input of the first block, the next ones are the outputs of these blocks."""
    behind = {str(stage): f"blocks.{block}" for stage, block in enumerate(blocks, start=1)}
    return {"0": Tap("blocks.0", entering=True), **behind}


def arm(*blocks: int) -> dict[str, Place]:
    """Stages are the outputs of these blocks."""
    return {"mixer": "blocks.1.mixer", **{str(i): f"blocks.{b}" for i, b in enumerate(blocks)}}


def adventurer(*blocks: int) -> dict[str, Place]:
    """Stages are outputs of these blocks; the mixer goes backward from the mean, our last token."""
    mixer = Tap(
        "blocks.2.mixer", then=lambda x: torch.cat([x[:, -1:], x[:, :-2].flip(1), x[:, -2:-1]], 1)
    )
    return {"mixer": mixer, **{str(i): f"blocks.{b}" for i, b in enumerate(blocks)}}


def rsmamba(name: str, model_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> Variant:
    """The shuffle of each block is a table; official mixers give tokens in the order of the paths.

    Args:
        name: Name of the manifest.
        model_kwargs: Arguments of the model except the orders.
        **kwargs: Arguments of the `Variant`.
    """
    manifest = read_manifest(name)
    path_type, (*_, height, width) = manifest["config"]["path_type"], manifest["input"]["shape"]
    grid = -(-height // 8), -(-width // 8)
    forward = torch.arange(math.prod(grid))
    order, walks = "raster", [forward]
    if "reverse" in path_type:
        order, walks = "bidirectional", [forward, forward.flip(0)]
    depth = sum(row[0].endswith("in_proj.weight") for row in manifest["params"])
    orders, walks, tables = [order] * depth, [walks] * depth, {}
    if "shuffle" in path_type:
        for i in range(depth):
            draw = fill.uniform(f"randperm.{i}", forward.shape)
            shuffle = torch.from_numpy(np.argsort(draw, kind="stable"))
            tables[f"{name}_{i}"] = {grid: shuffle[None]}
            orders[i], walks[i] = f"{order} + {name}_{i}", [*walks[i], shuffle]

    def walked(along: Tensor, block: int) -> Tensor:
        parts = zip(along.chunk(len(walks[block])), walks[block], strict=True)
        return torch.cat([tokens[:, path] for tokens, path in parts])

    return Variant(
        name,
        kwargs={
            "scan_order": orders,
            "gated": path_type.endswith("gate"),
            **(model_kwargs or {}),
        },
        modules={
            r"backbone\.patch_embed": "patch_embed",
            **{
                rf"backbone\.layers\.{i}": Tap(f"blocks.{i}.mixer", then=partial(walked, block=i))
                for i in range(depth)
            },
            r"backbone\.ln1": "norm",
            r"backbone\.ln2": "fc_norm",
        },
        wrap=lambda state: {"state_dict": state, "meta": {}},
        tables=tables,
        **kwargs,
    )


LOCALVIM_TEST = {"img_size": 64, "embed_dim": 48, "depth": 2, "rotary_cells": 4}
LOCALVIM = mixers(0, 4, 9, 14, 19)
MAMBAR: dict[str, Place] = {"neck": "pool", **streams(5, 11, 17, 23)}
MAMBAR_TEST = {"d_state": 16, "num_classes": 10}
PLAINMAMBA: dict[str, Place] = {**streams(0, 5, 11, 23), "0": "patch_embed"}
DENSE_VIM = {"class_token": "none", "features_only": True}
VIM_512 = {"class_token": "none", "num_classes": 0, "img_size": 512}
ROWS = [
    Variant(
        "adventurer_test",
        "test_adventurer",
        {
            "patch_size": 8,
            "embed_dim": 64,
            "depth": 7,
            "d_state": 16,
            "head_dim": 64,
            "num_classes": 10,
        },
        adventurer(0, 2, 4, 6),
    ),
    Variant(
        "adventurer_tiny_patch16_224",
        "adventurer_tiny_patch16_224",
        modules=adventurer(2, 5, 8, 11),
    ),
    *(
        Variant(name, name, modules=adventurer(2, 5, 8, 11))
        for name in (
            "adventurer_small_patch16_224",
            "adventurer_base_patch16_224",
            "adventurer_base_patch16_384",
            "adventurer_base_patch16_448",
            "adventurer_base_patch8_224",
            "adventurer_base_patch8_448",
            "adventurer_large_patch16_224",
        )
    ),
    Variant(
        "arm_test",
        "test_arm",
        {"patch_size": 8, "d_state": 16, "num_classes": 10},
        arm(0, 2),
    ),
    *(
        Variant(name, name, modules=arm(2, 5, 8, 11))
        for name in ("arm_base_patch16_224", "arm_large_patch16_224", "arm_huge_patch16_224")
    ),
    *(
        Variant(
            name,
            "test_localvim",
            {**LOCALVIM_TEST, "scan_order": local_orders(name), **kwargs},
            mixers(0, 1),
        )
        for name, kwargs in (
            ("localvim_test", {"num_classes": 50}),
            ("localvim_cls_test", {"num_classes": 50, "class_token": True}),
            ("localvim_dense_test", DENSE),
        )
    ),
    Variant("localvim_tiny", "localvim_tiny", modules=LOCALVIM),
    Variant("localvim_tiny_middle_cls_token", "localvim_tiny_midcls", modules=LOCALVIM),
    Variant("localvim_small", "localvim_small", modules=LOCALVIM),
    # the same names and shapes
    Variant("localvim_small_searched", "localvim_small_searched", modules=LOCALVIM, identify=False),
    Variant(
        "mamband_test",
        "test_mamband",
        {"depth": 6, "merge_after": 3, "d_state": 16, "num_classes": 10},
        {"3": "merge"},
    ),
    Variant("mamband_2d_small", "mamband_small"),
    Variant("mamband_2d_base", "mamband_base"),
    Variant(
        "mambar_test",
        "test_mambar",
        {"img_size": (64, 48), "depth": 3, "num_registers": 4, **MAMBAR_TEST},
        {"neck": "pool", **streams(0, 1, 2)},
    ),
    Variant(
        "mambar_noreduce_test",
        "test_mambar",
        {"img_size": 48, "depth": 2, "num_registers": 3, "reduction": 1, **MAMBAR_TEST},
        streams(0, 1),
    ),
    Variant("mambar_small_patch16_224", "mambar_small_patch16_224", modules=MAMBAR),
    Variant("mambar_base_patch16_224", "mambar_base_patch16_224", modules=MAMBAR),
    Variant(
        "mambar_large_patch16_224",
        "mambar_large_patch16_224",
        modules={"neck": "pool", **streams(11, 23, 35, 47)},
    ),
    Variant(
        "plainmamba_test",
        "test_plainmamba",
        {"embed_dim": 48, "depth": 3, "stem_convs": 2, "d_state": 16, "num_classes": 50},
        {**streams(0, 1, 2), "0": "patch_embed", "4": "norm"},
    ),
    Variant(
        "plainmamba_dense_test",
        "test_plainmamba",
        {
            "embed_dim": 48,
            "stem_convs": 1,
            "d_state": 16,
            "stage_norm": True,
            "features_only": True,
        },
    ),
    Variant("plainmamba_l1", "plainmamba_l1", modules={**PLAINMAMBA, "5": "norm"}),
    Variant("plainmamba_l2", "plainmamba_l2", modules={**PLAINMAMBA, "5": "norm"}),
    Variant(
        "plainmamba_l3",
        "plainmamba_l3",
        modules={**streams(0, 8, 17, 35), "0": "patch_embed", "5": "norm"},
    ),
    *(
        rsmamba(
            name,
            {"img_size": (64, 48), "depth": 3, "d_state": 16, "num_classes": 5},
            model="test_rsmamba",
        )
        for name in (
            "rsmamba_test",
            "rsmamba_forward_test",
            "rsmamba_forward_reverse_gate_test",
            "rsmamba_forward_reverse_shuffle_mean_test",
        )
    ),
    rsmamba("rsmamba_uc_b", model="rsmamba_base", identify=True),
    rsmamba("rsmamba_uc_l", model="rsmamba_large", identify=True),
    rsmamba("rsmamba_uc_h", model="rsmamba_huge", identify=True),
    rsmamba("rsmamba_aid_b", {"num_classes": 30}, model="rsmamba_base", identify=True),
    rsmamba("rsmamba_nwpu_b", {"num_classes": 45}, model="rsmamba_base", identify=True),
    Variant(
        "videomamba_test",
        "test_videomamba",
        {"img_size": (64, 48), "depth": 3, "d_state": 16, "num_classes": 10},
        streams(0, 1, 2),
    ),
    *(
        # names and shapes of some are those of Vim
        Variant(name, name, modules=streams(5, 11, 17, 23), identify="224" not in name)
        for name in (
            "videomamba_tiny_patch16_224",
            "videomamba_tiny_patch16_448",
            "videomamba_tiny_patch16_576",
            "videomamba_small_patch16_224",
            "videomamba_small_patch16_448",
            "videomamba_small_patch16_576",
            "videomamba_base_patch16_224",
        )
    ),
    *(
        Variant(name, name, modules=streams(7, 15, 23, 31))
        for name in (
            "videomamba_middle_patch16_224",
            "videomamba_middle_patch16_448",
            "videomamba_middle_patch16_576",
        )
    ),
    Variant(
        "vim_test",
        "test_vim",
        {"img_size": (64, 96), "stride": 8, "depth": 3, "d_state": 16, "num_classes": 10},
    ),
    Variant(
        "vim_seg_test",
        "test_vim",
        {**DENSE_VIM, "img_size": 128, "depth": 4, "d_state": 16, "pyramid": (0, 1, 2, 3)},
        also=({"features_only": False},),  # with the last norm
    ),
    Variant(
        "vim_det_test",
        "test_vim",
        {**DENSE_VIM, "img_size": 128, "d_state": 16, "rotary": True, "out_indices": (3,)},
    ),
    Variant("vim_tiny_patch16_224", "vim_tiny_patch16_224", slow=False),
    Variant("vim_small_patch16_224", "vim_small_patch16_224"),
    Variant("vim_base_patch16_224", "vim_base_patch16_224"),
    Variant("vim_tiny_plus_patch16_stride8_224", "vim_tiny_patch16_stride8_224"),
    Variant("vim_small_plus_patch16_stride8_224", "vim_small_patch16_stride8_224"),
    Variant("vim_tiny_rope_v1", "vim_tiny_rope_patch16_224"),
    Variant("vim_tiny_det_backbone", "vim_tiny_rope_patch16_224", VIM_512, fresh=("norm.weight",)),
    Variant(
        "vim_tiny_seg_backbone",
        "vim_tiny_patch16_224",
        {**DENSE_VIM, "img_size": 512, "pyramid": (5, 11, 17, 23)},
    ),
    Variant(
        "vimf_test",
        "test_vimf",
        {
            "stem_dims": (48, 96),
            "embed_dim": 192,
            "depth": 10,
            "fourier_blocks": 8,
            "d_state": 16,
            "num_classes": 10,
        },
        streams(1, 4, 9),
    ),
    Variant("vimf_tiny_patch16_224", "vimf_tiny_patch16_224", modules=streams(5, 11, 23)),
]
