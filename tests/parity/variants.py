"""The table of configurations that were recorded from original models, and ours for each.

A row is all that a model needs: tests/parity/test_parity.py makes from it the tests of outputs,
stages, gradients, strict loading and `vimamba.identify`. Rows are sorted by family; the manifest
`<name>.json` and, if there are arrays, `<name>.npz` lie beside this file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tests.parity.official import read_manifest
from vimamba import create_segmenter
from vimamba.models import localvmamba
from vimamba.networks import UMamba


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
        fresh: Our parameters that the file lacks and may lack.
        absorbed: Pattern of parameters of the original that ours computes, or reads into others.
        also: Arguments of models that take the file, too; what they have no use for is left out.
        slow: Compare outputs with `-m slow` only; by default all that are no `*_test`.
        identify: Whether `vimamba.identify` tells the file, by default of all that need no
            arguments.
    """

    name: str
    model: str | Callable[..., nn.Module]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, Place] = field(default_factory=dict)
    wrap: Callable[[dict[str, Tensor]], Any] = lambda state: {"model": state}
    finish: Callable[[Tensor], Tensor] = lambda output: output
    fresh: tuple[str, ...] = ()
    absorbed: str | None = None
    also: tuple[Mapping[str, Any], ...] = ()
    slow: bool | None = None
    identify: bool | None = None

    @property
    def is_small(self) -> bool:
        return self.name.endswith("_test")

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

    def create(self, file: Path, **kwargs: Any) -> nn.Module:
        """Our model with the weights of an official file."""
        kwargs = {**self.kwargs, **kwargs}
        if not self.is_network:
            overlay = {"file": str(file)}
            kwargs |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
            return timm.create_model(self.model, **kwargs)
        make = self.model if callable(self.model) else partial(create_segmenter, self.model)
        network = make(**kwargs)
        network.load_pretrained(file)
        return network

    def outline(self) -> nn.Module:
        """Our backbone without memory for weights, whole where maps are all that is wanted."""
        kwargs = dict(self.kwargs)
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


GROUPMAMBA: dict[str, Place] = {"post": "head.post"}
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
        GROUPMAMBA,
    ),
    Variant("groupmamba_tiny", "groupmamba_tiny", modules=GROUPMAMBA),
    Variant("groupmamba_small", "groupmamba_small", modules=GROUPMAMBA),
    Variant("groupmamba_base", "groupmamba_base", modules=GROUPMAMBA),
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
NETWORKS = [
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
    Variant("vmunet_test", "vm_unet", {**VM_UNET_TEST, "num_classes": 3}, VM_UNET),
    Variant("vmunet_isic", "vm_unet", {"num_classes": 1}, VM_UNET, finish=Tensor.sigmoid),
    Variant("vmunet_synapse", "vm_unet", {"num_classes": 9}, VM_UNET),
    Variant("vmunet_default", "vm_unet", VM_UNET_DEEP, VM_UNET, finish=Tensor.sigmoid),
]
VARIANTS = [*BACKBONES, *NETWORKS]
