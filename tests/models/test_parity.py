"""Outputs and gradients of the official code, recorded in float64, against ours.

`tests/parity/<name>.json` holds the official parameters' names and shapes; `fill.py` makes weights
from them, the same that the official code was given. The arrays are stored in float32, so 1e-6 is
the tolerance; the smallest wrong detail changes an output by about 1e-3.
"""

import numpy as np
import pytest
import timm
import torch

from tests.parity.official import HERE, fill, filled_state, read_manifest
from vimamba.models import vmamba

TOLERANCE = 1e-6

# what turns a small or dense official configuration into ours
DENSE_VIM = {"class_token": "none", "features_only": True}
VMAMBA_TEST = {"depths": (1, 1, 1), "dims": (16, 32, 64), "mlp_ratio": 4.0}
VMAMBA_V0 = {"d_state": 16, "expand": 2.0, "mlp_ratio": 0.0, "gated": True, "conv_bias": True}
# long ones that differ from others in little
SLOW = {"vim_tiny_seg_backbone", "vmamba_tiny_s1l8_backbone", "vmamba_tiny_v0"}
VARIANTS = {
    "vim_test": (
        "test_vim",
        {"img_size": (64, 96), "stride": 8, "depth": 3, "d_state": 16, "num_classes": 10},
    ),
    "vim_tiny_patch16_224": ("vim_tiny_patch16_224", {}),
    "vim_seg_test": (
        "test_vim",
        {**DENSE_VIM, "img_size": 128, "depth": 4, "d_state": 16, "pyramid": (0, 1, 2, 3)},
    ),
    "vim_tiny_seg_backbone": (
        "vim_tiny_patch16_224",
        {**DENSE_VIM, "img_size": 512, "pyramid": (5, 11, 17, 23)},
    ),
    "vim_det_test": (
        "test_vim",
        {**DENSE_VIM, "img_size": 128, "d_state": 16, "rotary": True, "out_indices": (3,)},
    ),
    "vmamba_test": (
        "test_vmamba",
        {**VMAMBA_TEST, "depths": (1, 2, 1), "expand": 2.0, "num_classes": 10},
    ),
    "vmamba_ln_test": ("test_vmamba", {**VMAMBA_TEST, "num_classes": 10}),
    "vmamba_tiny_s1l8": ("vmamba_tiny_s1l8", {}),
    "vmamba_tiny_s1l8_backbone": (
        "vmamba_tiny_s1l8",
        {"stage_norm": True, "features_only": True},
    ),
    "vmamba_v0_even_test": (
        "test_vmamba",
        {**VMAMBA_TEST, **VMAMBA_V0, "overlapping": False, "num_classes": 10},
    ),
    "vmamba_tiny_v0": ("vmamba_tiny_v0", {}),
    "vmamba_m2_test": (
        "test_vmamba_m2",
        {
            "depths": (1, 1, 1),
            "dims": (32, 64, 128),
            "mlp_ratio": 4.0,
            "d_state": 16,
            "num_classes": 10,
        },
    ),
}


def load(name, tmp_path):
    """Our model with the filled official file, in float64."""
    timm_name, args = VARIANTS.get(name, (name, {}))
    torch.save({"model": filled_state(name)}, tmp_path / "official.pth")
    overlay = {"file": str(tmp_path / "official.pth"), "num_classes": args.get("num_classes", 1000)}
    model = timm.create_model(timm_name, pretrained=True, pretrained_cfg_overlay=overlay, **args)
    return model.eval().double()


def subsample(array, description):
    slices = description["slices"] if description else "full"
    return array if slices == "full" else array[tuple(slice(*s) for s in slices)]


def assert_close(ours, expected, what):
    ours = ours.detach().numpy()
    assert ours.shape == expected.shape, what
    error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    assert error < TOLERANCE, f"{what}: relative L2 error {error:.2e}"


def input_of(manifest):
    return torch.from_numpy(fill.fill_input(manifest["input"]["shape"])).double()


def intermediates(model, image):
    """Final features and those of each stage or block; Vim's with the class token in place."""
    if isinstance(model, vmamba.VMamba):
        return model.forward_intermediates(image)
    final, pairs = model.forward_intermediates(image, output_fmt="NLC", return_prefix_tokens=True)
    middle = pairs[0][0].shape[1] // 2
    return final, [torch.cat([x[:, :middle], t, x[:, middle:]], dim=1) for x, t in pairs]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in VARIANTS]
)
def test_outputs_equal_the_official_ones(name, tmp_path):
    manifest, recorded = read_manifest(name), np.load(HERE / f"{name}.npz")
    model = load(name, tmp_path)
    with torch.no_grad():
        if "logits" not in recorded:
            outputs = model(input_of(manifest))
            for i, ours in enumerate(outputs):
                stages = manifest["stages"]
                stage = stages.get(f"out.{i}") or stages[str(i)]
                assert_close(subsample(ours, stage), recorded[f"out.{i}"], f"out.{i}")
            return
        final, features = intermediates(model, input_of(manifest))
        for key, stage in manifest["stages"].items():
            if key != "patch_embed":
                ours = subsample(features[int(key)], stage)
                assert_close(ours, recorded[f"stages.{key}"], f"stages.{key}")
        if "features" in recorded:
            ours = model.forward_head(final, pre_logits=True)
            assert_close(ours, recorded["features"], "features")
        assert_close(model(input_of(manifest)), recorded["logits"], "logits")


def test_the_logits_of_mamba_2_have_the_official_statistics(tmp_path):
    # of this size no arrays were recorded
    manifest = read_manifest("vmamba_tiny_m2")
    with torch.no_grad():
        logits = load("vmamba_tiny_m2", tmp_path)(input_of(manifest))
    ours = {"mean": logits.mean(), "std": logits.std(), "absmax": logits.abs().max()}
    for name, value in ours.items():
        assert value.item() == pytest.approx(manifest["checks"]["logits"][name], rel=TOLERANCE)


def our_gradient(name, key, model):
    """Gradient in the official shape: number the official entries and see where each one goes."""
    state = {k: torch.zeros_like(v) for k, v in filled_state(name).items()}
    count = state[key].numel()
    state[key] = torch.arange(1.0, count + 1).view_as(state[key])
    gradient = torch.zeros(count, dtype=torch.float64)
    for our_name, numbers in model.from_official(state).items():
        places = numbers > 0
        if places.any():
            ours = model.get_parameter(our_name).grad
            gradient[numbers[places].long() - 1] = ours[places]
    return gradient.view_as(state[key])


@pytest.mark.parametrize(
    "name", ["vim_test", "vmamba_test", "vmamba_ln_test", "vmamba_v0_even_test", "vmamba_m2_test"]
)
def test_gradients_equal_the_official_ones(name, tmp_path):
    manifest, recorded = read_manifest(name), np.load(HERE / f"{name}.npz")
    model = load(name, tmp_path)
    image = input_of(manifest).requires_grad_()
    logits = model(image)
    cotangent = torch.from_numpy(fill.fill_input(logits.shape, "cotangent")).double()
    (logits * cotangent).sum().backward()
    keys = [k for k in recorded.files if k.startswith("grad.")]
    assert len(keys) > 5
    for key in keys:
        official = key.removeprefix("grad.")
        ours = image.grad if official == "input" else our_gradient(name, official, model)
        assert_close(subsample(ours, manifest["grads"].get(key)), recorded[key], key)
