"""Outputs, stages and gradients of the official networks, recorded in float64, against ours."""

import re

import pytest
import torch

import vimamba
from tests.parity.official import filled_state, read_manifest
from tests.parity.recorded import assert_gradients_equal, assert_outputs_and_stages_equal

VMUNET_TEST = {"depths": (1, 1, 2), "decoder_depths": (2, 1, 1), "dims": (16, 32, 64)}
NETWORKS = {
    "vmunet_test": ("vm_unet", {**VMUNET_TEST, "num_classes": 3}),
    "vmunet_isic": ("vm_unet", {"num_classes": 1}),
    "vmunet_synapse": ("vm_unet", {"num_classes": 9}),
    "vmunet_default": (
        "vm_unet",
        {"num_classes": 1, "depths": (2, 2, 9, 2), "decoder_depths": (2, 9, 2, 2)},
    ),
}
# official modules and ours that give the same; ours halve the grid in front of a stage
MODULES = {
    r"vmunet\.patch_embed": "encoder.stem",
    r"vmunet\.layers\.(\d)": lambda m: f"encoder.stages.{int(m[1]) + 1}.downsample",
    r"vmunet\.layers_up\.(\d)": r"decoder.\1",
    r"vmunet\.final_up": "expand",
    r"vmunet\.final_conv": "classifier",
}
SMALL = [name for name in NETWORKS if name.endswith("_test")]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in SMALL]


def load(name, tmp_path):
    """Our network with the filled official file, in float64."""
    model, args = NETWORKS[name]
    torch.save(filled_state(name), tmp_path / "official.pth")
    network = vimamba.create_segmenter(model, **args)
    network.load_pretrained(tmp_path / "official.pth")
    return network.eval().double()


def our_module(network, theirs):
    """The module whose output is that of an official one."""
    last = len(network.encoder.stages) - 1
    if theirs == f"vmunet.layers.{last}":
        return network.encoder.stages[last].blocks
    for pattern, ours in MODULES.items():
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


@pytest.mark.parametrize("name", NETWORKS)
def test_the_number_of_parameters_is_the_official_one(name):
    model, args = NETWORKS[name]
    network = vimamba.create_segmenter(model, **args)
    assert sum(p.numel() for p in network.parameters()) == read_manifest(name)["num_params"]
