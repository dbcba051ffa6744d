"""Properties of MSVMamba and of the pyramids after MLLA that recordings do not cover."""

import pytest
import timm
import torch

import vimamba  # noqa: F401  registers the models


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("test_vssd", {"heads": (3, 2, 2, 2)}, "heads=3 must divide the 16 inner channels"),
        ("test_mlla", {"heads": (3, 2, 2, 2)}, "heads=3 and 4 must divide the 8 channels"),
        ("test_msvmamba", {"version": 2}, "version=2 is unknown; choose 1 or 3"),
    ],
)
def test_what_a_family_cannot_be_made_of_is_refused(name, arguments, text):
    with pytest.raises(ValueError, match=text):
        timm.create_model(name, **arguments)


def test_msvmamba_walks_one_path_at_both_resolutions():
    torch.manual_seed(0)
    one = timm.create_model("test_msvmamba", scan_order="raster").eval().double()
    two = timm.create_model("test_msvmamba", scan_order="raster + raster").eval().double()
    two.load_state_dict(one.state_dict())
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(one(image), two(image))
