"""Rows of staged models."""

from typing import Any

from tests.parity.rows.orders import local_orders
from tests.parity.variants import DENSE, Place, Tap, Variant, merged

# recorded as stage 0: the stem
AFTER_STEM: dict[str, Place] = {
    r"0": "stem",
    r"(\d)": lambda model, m: model.stages[int(m[1]) - 1],
}
A2MAMBA: dict[str, Place] = {
    "ssm": "stages.0.blocks.0.mixer.average",
    "mixer": "stages.1.blocks.0.mixer",
}
A2MAMBA_TEST = {"dims": (16, 32, 48, 64), "img_size": (96, 128), "num_classes": 10}
DAMAMBA: dict[str, Any] = {
    "modules": {
        r"dascan": "stages.0.blocks.0.mixer.resample",
        r"mixer": "stages.1.blocks.0.mixer",
    },
    "absorbed": r"\.conv_constant$",
}
DAMAMBA_TEST = {"dims": (32, 48, 64, 80), "head_dim": 16, "layer_scales": (0.0, 0.0, 1e-6, 1e-6)}
EFFICIENTVMAMBA_TEST = {"depths": (1, 2, 1, 1), "dims": (32, 64, 128, 256)}
GROUPMAMBA: dict[str, Any] = {
    "modules": {"post": "head.neck.post"},
    # both classifiers are loaded as one
    "absorbed": r"^dist_head\.",
}
GROUPMAMBA_TEST = {"depths": (1, 1, 2, 1), "dims": (32, 32, 48, 64)}
LOCALVMAMBA_TEST = {"depths": (1, 1, 2, 1), "dims": (32, 64, 128, 256)}
MAMBATREE: dict[str, Place] = {
    "ssm": "stages.0.blocks.0.mixer.out_norm",
    "hnorm_in": Tap("stages.0.blocks.0.mixer.state_norm", entering=True),
    "mixer": "stages.1.blocks.0.mixer",
}
MAMBATREE_TEST = {"dims": (16, 32, 64, 128), "num_classes": 10}
MAMBAVISION_TEST = {
    "depths": (1, 1, 3, 2),
    "dims": (32, 64, 128, 256),
    "windows": (0, 0, 4, 3),
    "stem_dim": 16,
}
MAMBAVISION_DENSE = {"windows": (0, 0, 16, 8), "stage_norm": True, "features_only": True}
MEDMAMBA: dict[str, Place] = {r"layers\.(\d)": merged("stages")}
MEDMAMBA_ARGS = {"num_classes": 6}
MOBILEMAMBA: dict[str, Any] = {
    "modules": {
        r"ssm": "stages.1.blocks.0.mixer.wide.mixer",
        r"wte": "stages.1.blocks.0.mixer.wide",
    },
    "absorbed": r"\.i?wt_filter$",
}
PYRAMID_TEST = {"dims": (32, 64, 128, 256), "mlp_ratio": 4.0, "num_classes": 10}
TINYVIM: dict[str, Any] = {
    "modules": {
        r"op(\d)": lambda model, m: model.stages[int(m[1])].blocks[-1].mixer,
        r"conv0": lambda model, _: model.stages[0].blocks[-1].mixer.conv,
    },
    # both classifiers are loaded as one
    "absorbed": r"^dist_head\.",
}
VMAMBA_TEST = {"depths": (1, 1, 1), "dims": (16, 32, 64), "mlp_ratio": 4.0, "num_classes": 10}
VMAMBA_V0 = {"d_state": 16, "expand": 2.0, "mlp_ratio": 0.0, "gated": True, "conv_bias": True}
ROWS = [
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
    Variant("mambatree_test", "test_mambatree", MAMBATREE_TEST, MAMBATREE),
    *(
        Variant(f"mambatree_{size}", f"mambatree_{size}", modules=MAMBATREE)
        for size in ("tiny", "small", "base")
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
        "tinyvim_test", "test_tinyvim", {"dims": (16, 24, 48, 40), "num_classes": 10}, **TINYVIM
    ),
    Variant("tinyvim_small", "tinyvim_small", **TINYVIM),
    Variant("tinyvim_base", "tinyvim_base", **TINYVIM),
    Variant("tinyvim_large", "tinyvim_large", **TINYVIM),
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
