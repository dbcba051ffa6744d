"""Compares a model with what the official one computed, for the manifests of dense networks.

Arrays are stored in float32, so 1e-6 is the tolerance. What was stored is a part of each tensor;
`probe_dot`, its product with fixed numbers in float64, covers the rest.
"""

import numpy as np
import torch

from tests.parity.official import HERE, fill, filled_state, read_manifest

TOLERANCE = 1e-6
PROBE_TOLERANCE = 1e-10


def read_arrays(name):
    """The recorded arrays; of some sizes there are only the probes in the manifest."""
    file = HERE / f"{name}.npz"
    return np.load(file) if file.exists() else {}


def input_of(name):
    return torch.from_numpy(fill.fill_input(read_manifest(name)["input"]["shape"])).double()


def assert_equals_recorded(ours, key, description, recorded):
    ours = ours.detach()
    assert list(ours.shape) == description["shape"], key
    probe = torch.from_numpy(fill.fill_input(ours.shape, "probe")).double()
    error = float((ours * probe).sum()) - description["probe_dot"]
    error = abs(error) / float(ours.norm() * probe.norm())
    assert error < PROBE_TOLERANCE, f"{key}: error of the probe {error:.2e}"
    if key not in recorded:
        return
    if "flat_step" in description:
        part = ours.flatten()[:: description["flat_step"]]
    else:
        part = ours[tuple(slice(None, None, step) for step in description["step"])]
    expected = torch.from_numpy(recorded[key]).double()
    error = float((part - expected).norm() / expected.norm())
    assert error < TOLERANCE, f"{key}: relative L2 error {error:.2e}"


def assert_outputs_and_stages_equal(name, run, our_module, to_official=lambda outputs: outputs):
    """Check all that was recorded of a forward pass.

    Args:
        name: Of the manifest.
        run: From the image to the list of outputs.
        our_module: From the name of an official module to ours that gives the same.
        to_official: What the official network does to the outputs besides.
    """
    manifest, recorded = read_manifest(name), read_arrays(name)
    kept = {}
    for key, description in manifest["stages"].items():
        module = our_module(description["module"])
        module.register_forward_hook(lambda _m, _x, out, key=key: kept.update({key: out}))
    with torch.no_grad():
        outputs = to_official(run(input_of(name)))
    for key, description in manifest["stages"].items():
        assert_equals_recorded(kept[key], key, description, recorded)
    for ours, (key, description) in zip(outputs, manifest["outputs"].items(), strict=True):
        assert_equals_recorded(ours, key, description, recorded)


def our_gradient(name, key, model, from_official):
    """Gradient in the official shape: number the official entries and see where each one goes."""
    state = {k: torch.zeros_like(v) for k, v in filled_state(name).items()}
    count = state[key].numel()
    state[key] = torch.arange(1.0, count + 1).view_as(state[key])
    gradient = torch.zeros(count, dtype=torch.float64)
    for our_name, numbers in from_official(state).items():
        places = numbers > 0
        if places.any():
            gradient[numbers[places].long() - 1] = model.get_parameter(our_name).grad[places]
    return gradient.view_as(state[key])


def assert_gradients_equal(name, run, model, from_official):
    """Check all recorded gradients of the outputs' product with fixed numbers.

    Args:
        name: Of the manifest.
        run: From the image to the list of outputs.
        model: Where the gradients end.
        from_official: Renames an official state dict.
    """
    manifest, recorded = read_manifest(name), read_arrays(name)
    image = input_of(name).requires_grad_()
    outputs = dict(zip(manifest["outputs"], run(image), strict=True))
    total = 0
    for key, logits in outputs.items():
        cotangent = "cotangent" if len(outputs) == 1 else f"cotangent.{key}"
        total = total + (logits * torch.from_numpy(fill.fill_input(logits.shape, cotangent))).sum()
    total.backward()
    assert len(manifest["grads"]) >= 4
    for key, description in manifest["grads"].items():
        official = key.removeprefix("grad.")
        from_us = official == "input"
        ours = image.grad if from_us else our_gradient(name, official, model, from_official)
        assert_equals_recorded(ours, key, description, recorded)
