"""MedMamba's files and arguments; tests/parity compares it with the official code."""

import pytest
import timm
import torch

import vimamba
from tests.parity.official import shapes_only


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
