"""The table of configurations that were recorded from original models, and ours for each.

A row is all that a model needs: tests/parity/test_parity.py makes from it the tests of outputs,
stages, gradients, strict loading and `vimamba.identify`. Rows are sorted by family; the manifest
`<name>.json` and, if there are arrays, `<name>.npz` lie beside this file.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from tests.parity.official import fill, read_manifest
from vimamba import create_segmenter
from vimamba.models import localvmamba
from vimamba.networks import UMamba, create_network, list_networks


@dataclass(frozen=True)
class Tap:
    """Where a stage is found in our model.

    Attributes:
        module: Its name; may refer to groups of the matched pattern.
        entering: What goes into the module, not what comes out.
        then: From our tensor to the original's, where they hold the same otherwise arranged than
            by channels first or last.
    """

    module: str
    entering: bool = False
    then: Callable[[Tensor], Tensor] | None = None


# a module's name, more about it, or what finds the module; None: ours has no such tensor
Place = str | Tap | Callable[[nn.Module, re.Match[str]], nn.Module] | None


@dataclass(frozen=True)
class Variant:
    """One recorded configuration of an original model, and ours that must give the same.

    Attributes:
        name: Of the manifest.
        model: A timm name, that of a segmentation network, or what makes the model.
        kwargs: Its arguments; `features_only` where the maps of a dense backbone were recorded.
        modules: Patterns of the stages' names, or of the official modules where the manifest
            names them, and where we have each. The first that matches counts; STAGED or PLAIN
            follow.
        wrap: What the file holds, made from the state dict of the original.
        finish: What the original does to the outputs besides.
        call: Method of ours that gives what the original does, if it is not the whole network.
        fresh: Our parameters that the file lacks and may lack.
        absorbed: Pattern of parameters of the original that ours computes, or reads into others.
        also: Arguments of models that take the file, too; what they have no use for is left out.
        slow: Compare outputs with `-m slow` only; by default all that are no `*_test`.
        tables: Scan orders to register while it is tested, as `vimamba.register_scan_table` does.
        identify: Whether `vimamba.identify` tells the file, by default of all that need no
            arguments.
    """

    name: str
    model: str | Callable[..., nn.Module]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, Place] = field(default_factory=dict)
    wrap: Callable[[dict[str, Tensor]], Any] = lambda state: {"model": state}
    finish: Callable[[Tensor], Tensor] = lambda output: output
    call: str = ""
    fresh: tuple[str, ...] = ()
    absorbed: str | None = None
    also: tuple[Mapping[str, Any], ...] = ()
    slow: bool | None = None
    tables: Mapping[str, Mapping[tuple[int, ...], Tensor]] = field(default_factory=dict)
    identify: bool | None = None

    @property
    def is_small(self) -> bool:
        return self.name.endswith("_test")

    @property
    def is_loaded(self) -> bool:
        """Whether strict loading needs weights, as it does for what other models take of a file."""
        return self.is_small or bool(self.also)

    @property
    def is_slow(self) -> bool:
        return not self.is_small if self.slow is None else self.slow

    @property
    def is_network(self) -> bool:
        return not isinstance(self.model, str) or not timm.is_model(self.model)

    @property
    def is_identified(self) -> bool:
        is_stock = not (self.is_network or self.is_small or self.kwargs)
        return is_stock if self.identify is None else self.identify

    def is_absorbed(self, key: str) -> bool:
        return self.absorbed is not None and re.search(self.absorbed, key) is not None

    @property
    def make(self) -> Callable[..., Any]:
        """What makes our network."""
        if callable(self.model):
            return self.model
        is_segmenter = self.model in list_networks("segmentation")
        return partial(create_segmenter if is_segmenter else create_network, self.model)

    def create(self, file: Path, **kwargs: Any) -> nn.Module:
        """Our model with the weights of an official file."""
        kwargs = {**self.kwargs, **kwargs}
        if not self.is_network:
            overlay = {"file": str(file)}
            kwargs |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
            return timm.create_model(self.model, **kwargs)
        network = self.make(**kwargs)
        network.load_pretrained(file)
        return network

    def outline(self) -> nn.Module:
        """Our model without memory for weights, whole where maps are all that is wanted."""
        kwargs = dict(self.kwargs)
        if self.is_network:
            with torch.device("meta"):
                return self.make(**kwargs)
        if kwargs.pop("features_only", False):
            kwargs.pop("out_indices", None)
            kwargs["num_classes"] = 0
        return timm.create_model(self.model, device="meta", **kwargs)


# where models of stages, channels-last or -first, and models of blocks have what is recorded
STAGED: dict[str, Place] = {
    r"stem|patch_embed": "stem",
    r"(\d+)": r"stages.\1",
    r"norm": "norm",
}
PLAIN: dict[str, Place] = {
    r"stem|patch_embed": "patch_embed",
    # the residual stream after a block
    r"(\d+)": r"blocks.\1",
    r"norm": "norm",
}


def merged(prefix: str) -> Callable[[nn.Module, re.Match[str]], nn.Module]:
    """Official stages that downsample at their end; ours do at the beginning of the next."""

    def find(model: nn.Module, match: re.Match[str]) -> nn.Module:
        stages, following = model.get_submodule(prefix), int(match[1]) + 1
        last = following == len(stages)
        return stages[-1].blocks if last else stages[following].downsample

    return find


# recorded as stage 0: the stem
AFTER_STEM: dict[str, Place] = {
    r"0": "stem",
    r"(\d)": lambda model, m: model.stages[int(m[1]) - 1],
}

DENSE = {"stage_norm": True, "features_only": True}
EFFICIENTVMAMBA_TEST = {"depths": (1, 2, 1, 1), "dims": (32, 64, 128, 256)}


def local_orders(name: str) -> list[str]:
    """Scan orders of all blocks in a manifest of LocalMamba."""
    directions = read_manifest(name)["config"]["directions"]
    return localvmamba.local_orders("; ".join(" ".join(block) for block in directions))


def mixers(*blocks: int) -> dict[str, Place]:
    """Stage 0 is the patch embedding, the next ones what the mixers of these blocks give.

    The last stage is what the last block reads.
    """
    behind = {str(stage): f"blocks.{block}.mixer" for stage, block in enumerate(blocks, start=1)}
    last = {str(len(blocks) + 1): Tap(f"blocks.{blocks[-1]}.norm", entering=True)}
    return {"0": "patch_embed", **behind, **last}


def streams(*blocks: int) -> dict[str, Place]:
    """Stage 0 is what goes into the first block, the next ones what comes out of these."""
    behind = {str(stage): f"blocks.{block}" for stage, block in enumerate(blocks, start=1)}
    return {"0": Tap("blocks.0", entering=True), **behind}


def arm(*blocks: int) -> dict[str, Place]:
    """Stages come out of these blocks."""
    return {"mixer": "blocks.1.mixer", **{str(i): f"blocks.{b}" for i, b in enumerate(blocks)}}


def adventurer(*blocks: int) -> dict[str, Place]:
    """Stages come out of these blocks; their mixer goes backwards from the mean, our last token."""
    mixer = Tap(
        "blocks.2.mixer", then=lambda x: torch.cat([x[:, -1:], x[:, :-2].flip(1), x[:, -2:-1]], 1)
    )
    return {"mixer": mixer, **{str(i): f"blocks.{b}" for i, b in enumerate(blocks)}}


GROUPMAMBA: dict[str, Any] = {
    "modules": {"post": "head.neck.post"},
    # both classifiers are read as one
    "absorbed": r"^dist_head\.",
}
GROUPMAMBA_TEST = {"depths": (1, 1, 2, 1), "dims": (32, 32, 48, 64)}

LOCALVIM_TEST = {"img_size": 64, "embed_dim": 48, "depth": 2, "rotary_cells": 4}
LOCALVIM = mixers(0, 4, 9, 14, 19)
LOCALVMAMBA_TEST = {"depths": (1, 1, 2, 1), "dims": (32, 64, 128, 256)}

MAMBAR: dict[str, Place] = {"neck": "pool", **streams(5, 11, 17, 23)}
MAMBAR_TEST = {"d_state": 16, "num_classes": 10}

TINYVIM: dict[str, Any] = {
    "modules": {
        r"op(\d)": lambda model, m: model.stages[int(m[1])].blocks[-1].mixer,
        r"conv0": lambda model, _: model.stages[0].blocks[-1].mixer.conv,
    },
    # both classifiers are read as one
    "absorbed": r"^dist_head\.",
}


def rsmamba(name: str, model_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> Variant:
    """The shuffle of each block is a table; official mixers give tokens in the order of the paths.

    Args:
        name: Of the manifest.
        model_kwargs: Arguments of the model but the orders.
        **kwargs: Of the `Variant`.
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


MEDMAMBA: dict[str, Place] = {r"layers\.(\d)": merged("stages")}
MEDMAMBA_ARGS = {"num_classes": 6}

PLAINMAMBA: dict[str, Place] = {**streams(0, 5, 11, 23), "0": "patch_embed"}

DENSE_VIM = {"class_token": "none", "features_only": True}
VIM_512 = {"class_token": "none", "num_classes": 0, "img_size": 512}

MAMBAVISION_TEST = {
    "depths": (1, 1, 3, 2),
    "dims": (32, 64, 128, 256),
    "windows": (0, 0, 4, 3),
    "stem_dim": 16,
}
MAMBAVISION_DENSE = {"windows": (0, 0, 16, 8), "stage_norm": True, "features_only": True}

MOBILEMAMBA: dict[str, Any] = {
    "modules": {
        r"ssm": "stages.1.blocks.0.mixer.wide.mixer",
        r"wte": "stages.1.blocks.0.mixer.wide",
    },
    "absorbed": r"\.i?wt_filter$",
}

VMAMBA_TEST = {"depths": (1, 1, 1), "dims": (16, 32, 64), "mlp_ratio": 4.0, "num_classes": 10}
PYRAMID_TEST = {"dims": (32, 64, 128, 256), "mlp_ratio": 4.0, "num_classes": 10}
VMAMBA_V0 = {"d_state": 16, "expand": 2.0, "mlp_ratio": 0.0, "gated": True, "conv_bias": True}

SWIN_TEST = {"depths": (1, 1, 2, 1), "num_classes": 3, "in_chans": 2, "aux": True}
SWIN = {"num_classes": 14, "in_chans": 1}
SWIN_UMAMBA: dict[str, Place] = {
    r"stem": "conv_stem",
    r"vssm_encoder\.patch_embed": "encoder.stem",
    r"vssm_encoder\.layers\.(\d)": r"encoder.stages.\1",
    r"vssm_encoder\.downsamples\.(\d)": lambda model, m: (
        model.encoder.stages[int(m[1]) + 1].downsample
    ),
    r"encoder(\d)": lambda model, m: model.skips[int(m[1]) - 1],
    r"decoder1": "refine",
    r"decoder(\d)": lambda model, m: model.ups[6 - int(m[1])],
    r"decoder\.expand_layers\.3|decoder\.stages\.3": "decoder.expand",
    r"decoder\.expand_layers\.(\d)": r"decoder.blocks.\1.upsample",
    r"decoder\.stages\.(\d)": r"decoder.blocks.\1",
}
VM_UNET: dict[str, Place] = {
    r"vmunet\.patch_embed": "encoder.stem",
    r"vmunet\.layers\.(\d)": merged("encoder.stages"),
    r"vmunet\.layers_up\.(\d)": r"decoder.\1",
    r"vmunet\.final_up": "expand",
    r"vmunet\.final_conv": "classifier",
}
VM_UNET_TEST = {"depths": (1, 1, 2), "decoder_depths": (2, 1, 1), "dims": (16, 32, 64)}
VM_UNET_DEEP = {"num_classes": 1, "depths": (2, 2, 9, 2), "decoder_depths": (2, 9, 2, 2)}
UMAMBA: dict[str, Place] = {
    r"encoder\.(stem|stages\.\d)": r"\1",
    r"encoder\.mamba_layers\.(\d)": r"mambas.\1",
    r"mamba_layer": lambda model, m: model.mambas[len(model.stages) - 1],
    r"decoder\.stages\.(\d)": r"decoder.\1",
}

SEGMAMBA: dict[str, Place] = {
    r"vit\.gscs\.(\d)": r"stages.\1.gated_conv",
    r"vit\.stages\.(\d)": r"stages.\1.blocks",
    r"vit\.mlps\.(\d)": r"stages.\1.mlp",
    r"encoder(\d)": lambda model, m: model.skips[int(m[1]) - 1],
    r"decoder1": "refine",
    r"decoder(\d)": lambda model, m: model.ups[5 - int(m[1])],
}


def segmamba(name: str, **kwargs: Any) -> Variant:
    """The network that a manifest describes; it cuts the raster as if the volume were 128^3."""
    config = read_manifest(name)["config"]
    orders = [
        f"raster + raster(reverse=True) + interslice(pieces={64 >> stage})"
        for stage, depth in enumerate(config["depths"])
        for _ in range(depth)
    ]
    sizes = {"num_classes": config["out_chans"], "in_chans": config["in_chans"]}
    stages = {"depths": config["depths"], "dims": config["feat_size"]}
    stages["hidden_size"] = config["hidden_size"]
    return Variant(name, "segmamba", {**sizes, **stages, "scan_order": orders}, SEGMAMBA, **kwargs)


MORPH: dict[str, Place] = {
    r"transformer\.patch_embed": "patch_embed",
    r"layer(\d)": r"stages.\1",
    r"down(\d)": r"merges.\1",
    r"mamba(\d)": r"stages.\1.mixer",
    r"ss2d(\d)": r"stages.\1.block.mixer",
    r"norm(\d)": r"norms.\1",
    r"feature_extractor": "extractor",
    r"c1": "half_skip",
    r"c2": "full_skip",
    r"up(\d)": lambda model, m: model.ups[int(m[1]) - 1],
    r"reg_head": "flow",
    # a function of ours
    r"integrate": None,
}


def morph(name: str) -> Variant:
    """The network that a manifest describes; of VMambaMorph's blocks only the last of a scale."""
    manifest = read_manifest(name)
    config, absorbed = manifest["config"], None
    if manifest["vimamba"].startswith("v"):
        unused = (
            rf"\.{i}\.mamba\.{j}\." for i, n in enumerate(config["depths"]) for j in range(n - 1)
        )
        absorbed = "|".join(unused)
    kwargs = {"embed_dim": config["embed_dim"], "head_dim": config["reg_head_chan"]}
    # ours does not compute the fixed image's features again in the second pass
    places = {**MORPH, "feature_extractor": None} if "_rec" in name else MORPH
    return Variant(name, manifest["vimamba"], kwargs, places, absorbed=absorbed)


def umamba(name: str) -> Variant:
    """The network that nnU-Net's plans in a manifest describe."""
    plan = read_manifest(name)["config"]
    base, most = plan["UNet_base_num_features"], plan["unet_max_num_features"]
    stages = range(len(plan["conv_kernel_sizes"]))
    kwargs = {
        "features_per_stage": [min(base * 2**stage, most) for stage in stages],
        "kernel_sizes": plan["conv_kernel_sizes"],
        "strides": plan["pool_op_kernel_sizes"],
        "n_conv_per_stage": plan["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": plan["n_conv_per_stage_decoder"],
        "patch_size": plan["patch_size"],
        "mamba": "enc" if "enc" in name else "bot",
        "deep_supervision": plan["deep_supervision"],
    }
    model = partial(UMamba, plan["num_input_channels"], plan["num_segmentation_heads"])
    return Variant(
        name, model, kwargs, UMAMBA, also=({"deep_supervision": not plan["deep_supervision"]},)
    )


DAMAMBA: dict[str, Any] = {
    "modules": {
        r"dascan": "stages.0.blocks.0.mixer.resample",
        r"mixer": "stages.1.blocks.0.mixer",
    },
    "absorbed": r"\.conv_constant$",
}
DAMAMBA_TEST = {"dims": (32, 48, 64, 80), "head_dim": 16, "layer_scales": (0.0, 0.0, 1e-6, 1e-6)}


def change(name: str, model: str = "", *arguments: Any, **kwargs: Any) -> Variant:
    """A network for change, by default of the same name, with its own number of classes."""
    return Variant(name, partial(create_network, model or name), *arguments, **kwargs)


def second_date(x: Tensor) -> Tensor:
    """Ours encodes both dates at once, and what was recorded is the second."""
    return x.chunk(2)[1]


def change_mamba(decoder: str) -> dict[str, Place]:
    """Stages of ChangeMamba, whose decoder of both dates has this name."""
    return {
        r"encoder\.outnorm(\d)": Tap(r"encoder.stage_norms.\1", then=second_date),
        rf"{decoder}\.st_block_(\d)(\d)": lambda model, m: model.fusion.levels[
            int(m[1]) - 1
        ].blocks[int(m[2]) - 1],
        rf"{decoder}\.fuse_layer_(\d)": lambda model, m: model.fusion.levels[int(m[1]) - 1].fuse,
        rf"{decoder}\.smooth_layer_(\d)": lambda model, m: model.head.smooths[int(m[1]) - 1],
        r"decoder_(?:building|T1)\.st_block_4_semantic": "decoders.0.deepest",
        r"decoder_(?:building|T1)\.smooth_layer_0_semantic": "decoders.0.smooths.0",
        r"decoder_T2\.st_block_4_semantic": "decoders.1.deepest",
        r"decoder_T2\.smooth_layer_0_semantic": "decoders.1.smooths.0",
    }


CHANGE_MAMBA_TEST = {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128)}
RSM_TEST = {**CHANGE_MAMBA_TEST, "d_state": 8}


RSM_SS: dict[str, Place] = {
    r"patch_embed": "encoder.stem",
    **{rf"encoder_block{stage + 1}": f"encoder.stages.{stage}" for stage in range(4)},
    r"deocder_block(\d)": lambda model, m: model.decoder.fuse[int(m[1]) - 1],
    r"upsample_x4": "decoder.upsample",
}
RSM_CD: dict[str, Place] = {
    **RSM_SS,
    r"patch_embed": Tap("encoder.stem", then=second_date),
    **{
        rf"encoder_block{stage + 1}": Tap(f"encoder.stages.{stage}", then=second_date)
        for stage in range(4)
    },
    r"fuse_block(\d)": lambda model, m: model.fusion.convs[int(m[1]) - 1],
}
A2MAMBA: dict[str, Place] = {
    "ssm": "stages.0.blocks.0.mixer.average",
    "mixer": "stages.1.blocks.0.mixer",
}
A2MAMBA_TEST = {"dims": (16, 32, 48, 64), "img_size": (96, 128), "num_classes": 10}

MAMBATREE: dict[str, Place] = {
    "ssm": "stages.0.blocks.0.mixer.out_norm",
    "hnorm_in": Tap("stages.0.blocks.0.mixer.state_norm", entering=True),
    "mixer": "stages.1.blocks.0.mixer",
}
MAMBATREE_TEST = {"dims": (16, 32, 64, 128), "num_classes": 10}

BACKBONES = [
    Variant("mambatree_test", "test_mambatree", MAMBATREE_TEST, MAMBATREE),
    *(
        Variant(f"mambatree_{size}", f"mambatree_{size}", modules=MAMBATREE)
        for size in ("tiny", "small", "base")
    ),
    Variant("a2mamba_test", "test_a2mamba", A2MAMBA_TEST, A2MAMBA),
    *(
        Variant(name, name, modules=A2MAMBA)
        for name in (
            "a2mamba_nano",
            "a2mamba_tiny",
            "a2mamba_small",
            "a2mamba_base",
            "a2mamba_large",
        )
    ),
    Variant("damamba_test", "test_damamba", {**DAMAMBA_TEST, "num_classes": 10}, **DAMAMBA),
    Variant("damamba_tiny", "damamba_tiny", **DAMAMBA),
    Variant("damamba_small", "damamba_small", **DAMAMBA),
    Variant("damamba_base", "damamba_base", **DAMAMBA),
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
    Variant(
        "mamband_test",
        "test_mamband",
        {"depth": 6, "merge_after": 3, "d_state": 16, "num_classes": 10},
        {"3": "merge"},
    ),
    Variant("mamband_2d_small", "mamband_small"),
    Variant("mamband_2d_base", "mamband_base"),
    Variant(
        "efficientvmamba_test",
        "test_efficientvmamba",
        {**EFFICIENTVMAMBA_TEST, "num_classes": 50},
        AFTER_STEM,
    ),
    Variant(
        "efficientvmamba_dense_test", "test_efficientvmamba", {**EFFICIENTVMAMBA_TEST, **DENSE}
    ),
    Variant("efficientvmamba_tiny", "efficientvmamba_tiny", modules=AFTER_STEM),
    Variant("efficientvmamba_small", "efficientvmamba_small", modules=AFTER_STEM),
    Variant("efficientvmamba_base", "efficientvmamba_base", modules=AFTER_STEM),
    Variant(
        "groupmamba_test",
        "test_groupmamba",
        {**GROUPMAMBA_TEST, "stem_dim": 8, "mlp_ratios": (8, 8, 4, 4), "num_classes": 10},
        **GROUPMAMBA,
    ),
    Variant("groupmamba_tiny", "groupmamba_tiny", **GROUPMAMBA),
    Variant("groupmamba_small", "groupmamba_small", **GROUPMAMBA),
    Variant("groupmamba_base", "groupmamba_base", **GROUPMAMBA),
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
    *(
        Variant(
            name,
            "test_localvmamba",
            {**LOCALVMAMBA_TEST, "scan_order": local_orders(name), **kwargs},
            AFTER_STEM,
        )
        for name, kwargs in (
            ("localvmamba_test", {"num_classes": 50}),
            ("localvmamba_dense_test", DENSE),
        )
    ),
    Variant("localvmamba_tiny", "localvmamba_tiny", modules=AFTER_STEM),
    Variant("localvmamba_small", "localvmamba_small", modules=AFTER_STEM),
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
        "mambavision_test",
        "test_mambavision",
        {**MAMBAVISION_TEST, "layer_scale": 1e-5, "num_classes": 50},
    ),
    Variant(
        "mambavision_nols_test",
        "test_mambavision",
        {**MAMBAVISION_TEST, "depths": (1, 1, 2, 3), "num_classes": 50},
    ),
    Variant(
        "mambavision_dense_test", "test_mambavision", {**MAMBAVISION_TEST, **MAMBAVISION_DENSE}
    ),
    Variant("mamba_vision_T", "mambavision_t"),
    Variant("mamba_vision_T2", "mambavision_t2"),
    Variant("mamba_vision_S", "mambavision_s"),
    Variant("mamba_vision_B", "mambavision_b"),
    Variant("mamba_vision_B_21k", "mambavision_b"),
    Variant("mamba_vision_L", "mambavision_l"),
    Variant("mamba_vision_L_21k", "mambavision_l"),
    Variant("mamba_vision_L2", "mambavision_l2"),
    # the same weights as those of another size of windows
    Variant("mamba_vision_L2_512_21k", "mambavision_l2_512", identify=False),
    Variant("mamba_vision_L3_256_21k", "mambavision_l3_256"),
    Variant("mamba_vision_L3_512_21k", "mambavision_l3_512", identify=False),
    Variant(
        "medmamba_test",
        "test_medmamba",
        {"depths": (1, 2, 1), "dims": (24, 48, 96), **MEDMAMBA_ARGS},
        MEDMAMBA,
    ),
    Variant("medmamba_t", "medmamba_tiny", MEDMAMBA_ARGS, MEDMAMBA, identify=True),
    Variant("medmamba_s", "medmamba_small", MEDMAMBA_ARGS, MEDMAMBA, identify=True),
    Variant("medmamba_b", "medmamba_base", MEDMAMBA_ARGS, MEDMAMBA, identify=True),
    Variant("mlla_test", "test_mlla", {**PYRAMID_TEST, "heads": (1, 2, 4, 8)}),
    Variant("mlla_tiny", "mlla_tiny"),
    Variant("mlla_small", "mlla_small"),
    Variant("mlla_base", "mlla_base"),
    Variant("msvmamba_test", "test_msvmamba", {"dims": (24, 48, 96, 192), "num_classes": 10}),
    Variant("msvmambav3_noz_test", "test_msvmambav3", PYRAMID_TEST),
    Variant("msvmambav3_z_test", "test_msvmambav3", {**PYRAMID_TEST, "gated": True}),
    Variant("msvmamba_nano", "msvmamba_nano"),
    Variant("msvmamba_micro", "msvmamba_micro"),
    Variant("msvmamba_tiny", "msvmamba_tiny"),
    Variant("msvmambav3_tiny", "msvmambav3_tiny"),
    Variant("msvmambav3_small", "msvmambav3_small"),
    Variant("msvmambav3_base", "msvmambav3_base"),
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
    Variant("spatialmamba_test", "test_spatialmamba", PYRAMID_TEST),
    Variant("spatialmamba_tiny", "spatialmamba_tiny"),
    Variant("spatialmamba_small", "spatialmamba_small"),
    Variant("spatialmamba_base", "spatialmamba_base"),
    Variant(
        "videomamba_test",
        "test_videomamba",
        {"img_size": (64, 48), "depth": 3, "d_state": 16, "num_classes": 10},
        streams(0, 1, 2),
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
    Variant("plainmamba_l3", "plainmamba_l3", modules={**PLAINMAMBA, "5": "norm"}),
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
        "mobilemamba_test",
        "test_mobilemamba",
        {"dims": (40, 72, 104), "expand": 2.0, "num_classes": 10},
        **MOBILEMAMBA,
    ),
    Variant("mobilemamba_t2", "mobilemamba_t2", **MOBILEMAMBA),
    Variant("mobilemamba_t4", "mobilemamba_t4", **MOBILEMAMBA),
    Variant("mobilemamba_s6", "mobilemamba_s6", **MOBILEMAMBA),
    Variant("mobilemamba_b1", "mobilemamba_b1", **MOBILEMAMBA),
    # one network, for other sizes of images
    Variant("mobilemamba_b2", "mobilemamba_b2", **MOBILEMAMBA, identify=False),
    Variant("mobilemamba_b4", "mobilemamba_b4", **MOBILEMAMBA, identify=False),
    Variant(
        "tinyvim_test", "test_tinyvim", {"dims": (16, 24, 48, 40), "num_classes": 10}, **TINYVIM
    ),
    Variant("tinyvim_small", "tinyvim_small", **TINYVIM),
    Variant("tinyvim_base", "tinyvim_base", **TINYVIM),
    Variant("tinyvim_large", "tinyvim_large", **TINYVIM),
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
    Variant("vmamba_test", "test_vmamba", {**VMAMBA_TEST, "depths": (1, 2, 1), "expand": 2.0}),
    Variant("vmamba_ln_test", "test_vmamba", VMAMBA_TEST),
    Variant(
        "vmamba_v0_even_test",
        "test_vmamba",
        {**VMAMBA_TEST, **VMAMBA_V0, "overlapping": False},
    ),
    Variant(
        "vmamba_m2_test",
        "test_vmamba_m2",
        {**VMAMBA_TEST, "dims": (32, 64, 128), "d_state": 16},
    ),
    Variant("vmamba_tiny_s1l8", "vmamba_tiny_s1l8", slow=False),
    Variant("vmamba_small_s1l20", "vmamba_small_s1l20"),
    Variant("vmamba_base_s1l20", "vmamba_base_s1l20"),
    Variant("vmamba_tiny_s2l5", "vmamba_tiny_s2l5"),
    Variant("vmamba_small_s2l15", "vmamba_small_s2l15"),
    Variant("vmamba_base_s2l15", "vmamba_base_s2l15"),
    Variant("vmamba_tiny_0220", "vmamba_tiny_s2l4"),
    Variant("vmamba_tiny_v0", "vmamba_tiny_v0"),
    Variant("vmamba_small_v0", "vmamba_small_v0"),
    Variant("vmamba_base_v0", "vmamba_base_v0"),
    Variant("vmamba_tiny_m2", "vmamba_tiny_m2", slow=False),
    Variant("vmamba_tiny_s1l8_backbone", "vmamba_tiny_s1l8", DENSE),
    Variant("vmamba_tiny_v0_backbone", "vmamba_tiny_v0", DENSE),
    Variant("vssd_test", "test_vssd", {**PYRAMID_TEST, "d_state": 16, "heads": (2, 2, 4, 4)}),
    Variant("vssd_micro", "vssd_micro"),
    Variant("vssd_tiny", "vssd_tiny"),
    Variant("vssd_small", "vssd_small"),
    Variant("vssd_base", "vssd_base"),
]
MAMBA_HSI: dict[str, Place] = {
    r"patch_embedding": "embed",
    r"mamba\.(\d)": lambda model, m: model.blocks[int(m[1]) // 2],
    r"mamba\.(\d)\.spa_mamba": lambda model, m: model.blocks[int(m[1]) // 2].spatial,
    r"mamba\.(\d)\.spe_mamba": lambda model, m: model.blocks[int(m[1]) // 2].spectral,
}
MAMBA_HSI_SPECTRAL = {
    "num_classes": 4,
    "in_chans": 9,
    "dim": 24,
    "branches": "spectral",
    "groups": 8,
    "residual": False,
}


def mamba_hsi(name: str, kwargs: Mapping[str, Any] | None = None) -> Variant:
    """The official network gives logits of its coarse cells, and reads a batch as one sequence."""
    config = read_manifest(name)["config"]
    args = {"num_classes": config["num_classes"], "in_chans": config["in_channels"]}
    model = name if kwargs is None else "mambahsi_pavia"
    return Variant(name, model, {**args, **(kwargs or {})}, MAMBA_HSI, call="forward_cells")


NETWORKS = [
    *(
        morph(name)
        for name in (
            "mambamorph_test",
            "mambamorph_feat_test",
            "mambamorph",
            "mambamorph_feat",
            "vmambamorph_test",
            "vmambamorph_rec_test",
            "vmambamorph",
            "vmambamorph_feat",
            "vmambamorph_rec",
        )
    ),
    segmamba("segmamba_test"),
    segmamba("segmamba"),
    mamba_hsi("mambahsi_test", {"dim": 16, "norm_groups": 2, "joint_sequence": True}),
    mamba_hsi("mambahsi_spe_test", MAMBA_HSI_SPECTRAL),
    mamba_hsi("mambahsi_pavia"),
    mamba_hsi("mambahsi_houston"),
    mamba_hsi("mambahsi_hanchuan"),
    mamba_hsi("mambahsi_honghu"),
    Variant(
        "swin_umamba_test",
        "swin_umamba",
        {**SWIN_TEST, "dims": (8, 16, 32, 64, 128)},
        SWIN_UMAMBA,
        also=({"aux": False},),
    ),
    Variant("swin_umamba", "swin_umamba", SWIN, SWIN_UMAMBA, also=({"aux": True},)),
    Variant(
        "swin_umamba_d_test",
        "swin_umamba_d",
        {**SWIN_TEST, "dims": (16, 32, 64, 128)},
        SWIN_UMAMBA,
        also=({"aux": False},),
    ),
    Variant("swin_umamba_d", "swin_umamba_d", SWIN, SWIN_UMAMBA, also=({"aux": True},)),
    umamba("umamba_bot_2d_test"),
    umamba("umamba_enc_3d_test"),
    umamba("umamba_bot_2d"),
    umamba("umamba_enc_2d"),
    umamba("umamba_bot_3d"),
    umamba("umamba_enc_3d"),
    Variant("rsm_ss_test", "rsm_ss_tiny", {**RSM_TEST, "num_classes": 1}, RSM_SS),
    Variant("rsm_ss_tiny", "rsm_ss_tiny", {"num_classes": 1}, RSM_SS),
    Variant("vmunet_test", "vm_unet", {**VM_UNET_TEST, "num_classes": 3}, VM_UNET),
    Variant("vmunet_isic", "vm_unet", {"num_classes": 1}, VM_UNET, finish=Tensor.sigmoid),
    Variant("vmunet_synapse", "vm_unet", {"num_classes": 9}, VM_UNET),
    Variant("vmunet_default", "vm_unet", VM_UNET_DEEP, VM_UNET, finish=Tensor.sigmoid),
]
CHANGE = [
    change("mamba_bcd_test", "mamba_bcd_tiny", CHANGE_MAMBA_TEST, change_mamba("decoder")),
    change("mamba_bcd_tiny", modules=change_mamba("decoder")),
    change("mamba_bcd_small", modules=change_mamba("decoder")),
    change("mamba_bcd_base", modules=change_mamba("decoder")),
    change("mamba_scd_tiny", modules=change_mamba("decoder_bcd")),
    change("mamba_scd_base", modules=change_mamba("decoder_bcd")),
    change("mamba_bda_test", "mamba_bda_tiny", CHANGE_MAMBA_TEST, change_mamba("decoder_damage")),
    change("mamba_bda_tiny", modules=change_mamba("decoder_damage")),
    change("mamba_bda_base", modules=change_mamba("decoder_damage")),
    change("rsm_cd_test", "rsm_cd_tiny", RSM_TEST, RSM_CD),
    change("rsm_cd_tiny", modules=RSM_CD),
]
VARIANTS = [*BACKBONES, *NETWORKS, *CHANGE]
