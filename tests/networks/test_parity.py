"""Outputs, stages and gradients of the official networks, recorded in float64, against ours.

As `tests/models/test_parity.py`: arrays are stored in float32, so 1e-6 is the tolerance. What was
stored is a part of each tensor; `probe_dot`, its product with fixed numbers, covers the rest.
"""

import re

import numpy as np
import pytest
import torch

import vimamba
from tests.parity.official import HERE, fill, filled_state, read_manifest

TOLERANCE = 1e-6
# the float64 product with the probe agrees much better than what was stored in float32
PROBE_TOLERANCE = 1e-10

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
STAGES = {
    "vmunet": {
        r"vmunet\.patch_embed": "encoder.stem",
        r"vmunet\.layers\.(\d)": lambda m: f"encoder.stages.{int(m[1]) + 1}.downsample",
        r"vmunet\.layers_up\.(\d)": r"decoder.\1",
        r"vmunet\.final_up": "expand",
        r"vmunet\.final_conv": "classifier",
    },
}
SMALL = [name for name in NETWORKS if name.endswith("_test")]
LARGE = [name for name in NETWORKS if name not in SMALL]


def load(name, tmp_path):
    """Our network with the filled official file, in float64."""
    model, args = NETWORKS[name]
    torch.save(filled_state(name), tmp_path / "official.pth")
    network = vimamba.create_segmenter(model, **args)
    network.load_pretrained(tmp_path / "official.pth")
    return network.eval().double()


def input_of(manifest):
    return torch.from_numpy(fill.fill_input(manifest["input"]["shape"])).double()


def assert_equals_recorded(ours, key, description, recorded):
    ours = ours.detach()
    assert list(ours.shape) == description["shape"], key
    probe = torch.from_numpy(fill.fill_input(ours.shape, "probe")).double()
    scale = float(ours.norm() * probe.norm())
    assert abs(float((ours * probe).sum()) - description["probe_dot"]) < PROBE_TOLERANCE * scale, (
        key
    )
    if key not in recorded:
        return
    if "flat_step" in description:
        part = ours.flatten()[:: description["flat_step"]]
    else:
        part = ours[tuple(slice(None, None, step) for step in description["step"])]
    expected = torch.from_numpy(recorded[key]).double()
    error = float((part - expected).norm() / expected.norm())
    assert error < TOLERANCE, f"{key}: relative L2 error {error:.2e}"


def our_module(name, theirs):
    """The module whose output is that of an official one."""
    last = len(read_manifest(name)["config"].get("depths", ())) - 1
    if theirs == f"vmunet.layers.{last}":
        return f"encoder.stages.{last}.blocks"
    for pattern, ours in STAGES[name.split("_")[0]].items():
        if match := re.fullmatch(pattern, theirs):
            return ours(match) if callable(ours) else match.expand(ours)
    raise AssertionError(f"no module of ours for {theirs}")


def record_stages(name, network, stages):
    """Keep the outputs of modules during the next forward pass: {key: tensor}."""
    kept = {}
    for key, description in stages.items():
        module = network.get_submodule(our_module(name, description["module"]))
        module.register_forward_hook(lambda _m, _x, out, key=key: kept.update({key: out}))
    return kept


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)]
)
def test_outputs_and_stages_equal_the_official_ones(name, tmp_path):
    manifest = read_manifest(name)
    file = HERE / f"{name}.npz"
    recorded = np.load(file) if file.exists() else {}
    network = load(name, tmp_path)
    stages = record_stages(name, network, manifest["stages"])
    with torch.no_grad():
        outputs = network.forward_all(input_of(manifest))
    if name.startswith("vmunet") and manifest["config"]["num_classes"] == 1:
        outputs = [outputs[0].sigmoid()]
    for key, description in manifest["stages"].items():
        assert_equals_recorded(stages[key], key, description, recorded)
    for ours, (key, description) in zip(outputs, manifest["outputs"].items(), strict=True):
        assert_equals_recorded(ours, key, description, recorded)


def our_gradient(name, key, network):
    """Gradient in the official shape: number the official entries and see where each one goes."""
    state = {k: torch.zeros_like(v) for k, v in filled_state(name).items()}
    count = state[key].numel()
    state[key] = torch.arange(1.0, count + 1).view_as(state[key])
    gradient = torch.zeros(count, dtype=torch.float64)
    for our_name, numbers in network.from_official(state).items():
        places = numbers > 0
        if places.any():
            gradient[numbers[places].long() - 1] = network.get_parameter(our_name).grad[places]
    return gradient.view_as(state[key])


@pytest.mark.parametrize("name", SMALL)
def test_gradients_equal_the_official_ones(name, tmp_path):
    manifest, recorded = read_manifest(name), np.load(HERE / f"{name}.npz")
    network = load(name, tmp_path)
    image = input_of(manifest).requires_grad_()
    outputs = dict(zip(manifest["outputs"], network.forward_all(image), strict=True))
    total = 0
    for key, logits in outputs.items():
        cotangent = "cotangent" if len(outputs) == 1 else f"cotangent.{key}"
        total = total + (logits * torch.from_numpy(fill.fill_input(logits.shape, cotangent))).sum()
    total.backward()
    assert len(manifest["grads"]) > 5
    for key, description in manifest["grads"].items():
        official = key.removeprefix("grad.")
        ours = image.grad if official == "input" else our_gradient(name, official, network)
        assert_equals_recorded(ours, key, description, recorded)
