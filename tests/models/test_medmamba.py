"""MedMamba against what the official code computed in float64."""

import pytest
import timm
import torch

import vimamba
from tests.parity.official import filled_state, read_manifest, shapes_only
from tests.parity.recorded import assert_gradients_equal, assert_outputs_and_stages_equal

MODELS = {
    "medmamba_test": ("test_medmamba", {"depths": (1, 2, 1), "dims": (24, 48, 96)}),
    "medmamba_t": ("medmamba_tiny", {}),
    "medmamba_s": ("medmamba_small", {}),
    "medmamba_b": ("medmamba_base", {}),
}
LARGE = [pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "medmamba_test"]


def load(name, tmp_path, state):
    timm_name, args = MODELS[name]
    torch.save(state, tmp_path / "official.pth")
    overlay = {"file": str(tmp_path / "official.pth")}
    return timm.create_model(
        timm_name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=6, **args
    )


@pytest.mark.parametrize("name", ["medmamba_test", *LARGE])
def test_outputs_and_stages_equal_the_official_ones(name, tmp_path):
    model = load(name, tmp_path, filled_state(name)).eval().double()
    last = len(model.stages) - 1

    def our_module(theirs):
        if theirs == "patch_embed":
            return model.stem
        stage = int(theirs.removeprefix("layers."))
        return model.stages[stage].blocks if stage == last else model.stages[stage + 1].downsample

    assert_outputs_and_stages_equal(name, lambda x: [model(x)], our_module)


def test_gradients_equal_the_official_ones(tmp_path):
    model = load("medmamba_test", tmp_path, filled_state("medmamba_test")).eval().double()
    assert_gradients_equal("medmamba_test", lambda x: [model(x)], model, model.from_official)


@pytest.mark.parametrize("name", MODELS)
def test_every_official_layout_loads_strictly(name, tmp_path):
    model = load(name, tmp_path, shapes_only(name))
    # the files are all zeros, so whatever was not loaded stands out
    assert not [k for k, p in model.named_parameters() if p.any()]
    assert sum(p.numel() for p in model.parameters()) == read_manifest(name)["num_params"]


def test_a_file_for_other_classes_gives_all_but_the_classifier(tmp_path):
    torch.save(shapes_only("medmamba_t"), tmp_path / "official.pth")
    overlay = {"file": str(tmp_path / "official.pth")}
    model = timm.create_model(
        "medmamba_tiny", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3
    )
    assert {k for k, p in model.named_parameters() if p.any()} == {"head.fc.weight"}


def test_identify_names_the_variant(tmp_path):
    torch.save(shapes_only("medmamba_s"), tmp_path / "MedMambaNet.pth")
    found = vimamba.identify(tmp_path / "MedMambaNet.pth")
    assert (found.variant, found.family) == ("medmamba_small", "MedMamba")
    assert found.license == "unknown"


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match=r"dims=\(16, 25\) must be even"):
        timm.create_model("test_medmamba", depths=(1, 1), dims=(16, 25))
