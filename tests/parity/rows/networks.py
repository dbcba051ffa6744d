"""Rows of whole networks: of segmentation, registration and change."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from tests.parity.official import read_manifest
from tests.parity.variants import Place, Tap, Variant, merged
from vimamba.networks import UMamba, create_network

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


SEGMAMBA: dict[str, Place] = {
    r"vit\.gscs\.(\d)": r"stages.\1.gated_conv",
    r"vit\.stages\.(\d)": r"stages.\1.blocks",
    r"vit\.mlps\.(\d)": r"stages.\1.mlp",
    r"encoder(\d)": lambda model, m: model.skips[int(m[1]) - 1],
    r"decoder1": "refine",
    r"decoder(\d)": lambda model, m: model.ups[5 - int(m[1])],
}


def segmamba(name: str, **kwargs: Any) -> Variant:
    """The network that a manifest describes; it splits the raster as if the volume were 128^3."""
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
    """The official network returns logits of coarse cells, and reads a batch as one sequence."""
    config = read_manifest(name)["config"]
    args = {"num_classes": config["num_classes"], "in_chans": config["in_channels"]}
    model = name if kwargs is None else "mambahsi_pavia"
    return Variant(name, model, {**args, **(kwargs or {})}, MAMBA_HSI, call="forward_cells")


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


def morph(name: str, **options: Any) -> Variant:
    """The network that a manifest describes; only the last of VMambaMorph's blocks per scale."""
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
    return Variant(name, manifest["vimamba"], kwargs, places, absorbed=absorbed, **options)


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
ROWS = [
    *(
        # the gradients of a smaller row, of every network, are compared by default
        morph(name, slow_gradients="_rec" in name or "_feat" in name)
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
    # float64 convolutions of volumes; that it loads strictly is tested by default
    segmamba("segmamba_test", slow=True, slow_gradients=True),
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
