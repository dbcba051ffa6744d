"""Outputs, stages and gradients of the official networks, recorded in float64, against ours."""

import re

import pytest
import torch

import vimamba
from tests.parity.official import filled_state, read_manifest, shapes_only
from tests.parity.recorded import assert_gradients_equal, assert_outputs_and_stages_equal
from vimamba.networks import UMamba

VMUNET_TEST = {"depths": (1, 1, 2), "decoder_depths": (2, 1, 1), "dims": (16, 32, 64)}
SWIN_TEST = {"depths": (1, 1, 2, 1), "num_classes": 3, "in_chans": 2, "aux": True}
UMAMBA = [
    "umamba_bot_2d_test",
    "umamba_enc_3d_test",
    "umamba_bot_2d",
    "umamba_enc_2d",
    "umamba_bot_3d",
    "umamba_enc_3d",
]
NETWORKS = {
    "vmunet_test": ("vm_unet", {**VMUNET_TEST, "num_classes": 3}),
    "vmunet_isic": ("vm_unet", {"num_classes": 1}),
    "vmunet_synapse": ("vm_unet", {"num_classes": 9}),
    "vmunet_default": (
        "vm_unet",
        {"num_classes": 1, "depths": (2, 2, 9, 2), "decoder_depths": (2, 9, 2, 2)},
    ),
    **dict.fromkeys(UMAMBA, (None, None)),
    "swin_umamba_test": ("swin_umamba", {**SWIN_TEST, "dims": (8, 16, 32, 64, 128)}),
    "swin_umamba": ("swin_umamba", {"num_classes": 14, "in_chans": 1}),
    "swin_umamba_d_test": ("swin_umamba_d", {**SWIN_TEST, "dims": (16, 32, 64, 128)}),
    "swin_umamba_d": ("swin_umamba_d", {"num_classes": 14, "in_chans": 1}),
}
# official modules and ours that give the same; ours halve the grid in front of a stage
MODULES = {
    r"vmunet\.patch_embed": "encoder.stem",
    r"vmunet\.layers\.(\d)": lambda m: f"encoder.stages.{int(m[1]) + 1}.downsample",
    r"vmunet\.layers_up\.(\d)": r"decoder.\1",
    r"vmunet\.final_up": "expand",
    r"vmunet\.final_conv": "classifier",
    r"stem": "conv_stem",
    r"vssm_encoder\.patch_embed": "encoder.stem",
    r"vssm_encoder\.layers\.(\d)": r"encoder.stages.\1",
    r"vssm_encoder\.downsamples\.(\d)": lambda m: f"encoder.stages.{int(m[1]) + 1}.downsample",
    r"encoder(\d)": lambda m: f"skips.{int(m[1]) - 1}",
    r"decoder1": "refine",
    r"decoder(\d)": lambda m: f"ups.{6 - int(m[1])}",
    r"decoder\.expand_layers\.3|decoder\.stages\.3": "decoder.expand",
    r"decoder\.expand_layers\.(\d)": r"decoder.blocks.\1.upsample",
    r"decoder\.stages\.(\d)": r"decoder.blocks.\1",
}
UMAMBA_MODULES = {
    r"encoder\.(stem|stages\.\d)": r"\1",
    r"encoder\.mamba_layers\.(\d)": r"mambas.\1",
    r"decoder\.stages\.(\d)": r"decoder.\1",
}
SMALL = [name for name in NETWORKS if name.endswith("_test")]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in SMALL]


def create(name, **kwargs):
    """Our network of the official configuration."""
    if name not in UMAMBA:
        model, args = NETWORKS[name]
        return vimamba.create_segmenter(model, **{**args, **kwargs})
    plan = read_manifest(name)["config"]
    base, most = plan["UNet_base_num_features"], plan["unet_max_num_features"]
    stages = range(len(plan["conv_kernel_sizes"]))
    args = {
        "features_per_stage": [min(base * 2**stage, most) for stage in stages],
        "kernel_sizes": plan["conv_kernel_sizes"],
        "strides": plan["pool_op_kernel_sizes"],
        "n_conv_per_stage": plan["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": plan["n_conv_per_stage_decoder"],
        "patch_size": plan["patch_size"],
        "mamba": "enc" if "enc" in name else "bot",
        "deep_supervision": plan["deep_supervision"],
    }
    if "aux" in kwargs:
        args["deep_supervision"] = kwargs["aux"]
    return UMamba(plan["num_input_channels"], plan["num_segmentation_heads"], **args)


def load(name, tmp_path):
    """That with the filled official file, in float64."""
    torch.save(filled_state(name), tmp_path / "official.pth")
    network = create(name)
    network.load_pretrained(tmp_path / "official.pth")
    return network.eval().double()


def our_module(network, theirs):
    """The module whose output is that of an official one."""
    if isinstance(network, UMamba):
        modules, last = UMAMBA_MODULES, len(network.stages) - 1
    else:
        modules, last = MODULES, len(network.encoder.stages) - 1
    if theirs == f"vmunet.layers.{last}":
        return network.encoder.stages[last].blocks
    if theirs == "mamba_layer":
        return network.mambas[last]
    for pattern, ours in modules.items():
        if match := re.fullmatch(pattern, theirs):
            return network.get_submodule(ours(match) if callable(ours) else match.expand(ours))
    raise AssertionError(f"no module of ours for {theirs}")


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_outputs_and_stages_equal_the_official_ones(name, tmp_path):
    network = load(name, tmp_path)
    probabilities = name.startswith("vmunet") and network.num_classes == 1
    assert_outputs_and_stages_equal(
        name,
        network.forward_all,
        lambda theirs: our_module(network, theirs),
        lambda outputs: [o.sigmoid() for o in outputs] if probabilities else outputs,
    )


@pytest.mark.parametrize("name", SMALL)
def test_gradients_equal_the_official_ones(name, tmp_path):
    network = load(name, tmp_path)
    assert_gradients_equal(name, network.forward_all, network, network.from_official)


LAYOUTS = [(name, False) for name in NETWORKS]
LAYOUTS += [(name, True) for name in NETWORKS if not name.startswith("vmunet")]


@pytest.mark.parametrize(("name", "aux"), LAYOUTS)
def test_every_official_layout_loads_strictly(name, aux, tmp_path):
    torch.save({"network_weights": shapes_only(name)}, tmp_path / "official.pth")
    network = create(name, aux=aux)
    network.load_pretrained(tmp_path / "official.pth")
    # the files are all zeros, so whatever was not loaded stands out
    assert not [k for k, p in network.named_parameters() if p.any()]
    if aux or name.startswith("vmunet"):
        count = sum(p.numel() for p in network.parameters())
        assert count == read_manifest(name)["num_params"]
