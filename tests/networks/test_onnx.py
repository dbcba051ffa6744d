"""An exported segmentation network computes the network's outputs, at any size."""

import onnxruntime
import pytest
import torch

import vimamba
from vimamba.exporting import export_model
from vimamba.exporting.onnx_file import OnnxRunner
from vimamba.exporting.report import compare

WHOLE = {"depths": (1,) * 4, "decoder_depths": (1,) * 4, "dims": (16, 32, 64, 128)}
NETWORKS = {
    "upernet": ("test_vmamba", {"head": "upernet"}),
    "unet": ("test_vmamba", {"head": "unet"}),
    "vm_unet": ("vm_unet", WHOLE),
}
# multiples of a cell, and not in one or both directions
SHAPES = [(2, 3, 64, 64), (1, 3, 75, 101), (3, 3, 96, 90)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_an_onnx_file_of_a_segmentation_network_gives_its_numbers(kind, tmp_path):
    torch.manual_seed(0)
    name, kwargs = NETWORKS[kind]
    net = vimamba.create_segmenter(name, num_classes=3, **kwargs).eval()
    path = tmp_path / "net.onnx"
    report = export_model(net, path, image_size=(3, 64, 64))
    assert report.input == ("batch", 3, "height", "width")
    for check in compare(net, OnnxRunner(path), SHAPES):
        assert check.difference < 1e-4


# binary on a backbone, whole networks of all kinds; names of the outputs
SMALL_CHANGE = {"depths": (1, 1, 1), "dims": (16, 24, 32)}
CHANGE = {
    "test_vmamba": ({"head": "fpn", "depths": (1, 1), "dims": (16, 24)}, None),
    "rsm_cd_tiny": ({**SMALL_CHANGE, "d_state": 4}, None),
    "mamba_bcd_tiny": ({**SMALL_CHANGE, "decoder_dim": 16}, None),
    "mamba_scd_tiny": ({**SMALL_CHANGE, "decoder_dim": 16}, ["change", "before", "after"]),
    "mamba_bda_tiny": ({**SMALL_CHANGE, "decoder_dim": 16}, ["building", "damage"]),
}


# `omni_wrap` takes a remainder by a dynamic size, which torch.onnx cannot translate
NO_FREE_SIZES = pytest.mark.xfail(strict=True, reason="torch.onnx: remainder by a free size")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=NO_FREE_SIZES if n == "rsm_cd_tiny" else []) for n in CHANGE],
)
def test_an_onnx_file_of_a_network_for_change_takes_both_dates(name, tmp_path):
    torch.manual_seed(0)
    kwargs, output_names = CHANGE[name]
    net = vimamba.create_change_detector(name, num_classes=3, **kwargs).eval()
    path = tmp_path / "net.onnx"
    report = export_model(net, path, image_size=(3, 32, 48))
    assert report.input == ("batch", 2, 3, "height", "width")
    session = onnxruntime.InferenceSession(str(path))
    if output_names is not None:
        assert [output.name for output in session.get_outputs()] == output_names
    before, after = torch.randn(2, 2, 3, 32, 48).unbind()
    with torch.no_grad():
        logits = net(before, after)
    found = session.run(None, {"image": torch.stack([before, after], 1).numpy()})
    for one, other in zip(found, [logits] if output_names is None else logits, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-4, atol=1e-4)


# of 8 x 16 x 16 voxels
VOLUMES = {
    "segmamba": {"depths": (1, 1), "dims": (4, 6), "hidden_size": 8},
    "umamba_bot_3d": {"features_per_stage": (4, 8), "img_size": (8, 16, 16)},
    "umamba_enc_3d": {"features_per_stage": (4, 8), "img_size": (8, 16, 16)},
    "vss_unet_3d_nano": {"patch_size": (8, 16, 16)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VOLUMES)
def test_an_onnx_file_of_a_network_for_volumes_gives_its_numbers_for_windows_of_one_size(
    name, tmp_path
):
    torch.manual_seed(0)
    net = vimamba.create_network(name, num_classes=2, in_chans=1, **VOLUMES[name]).eval()
    report = export_model(net, tmp_path / "net.onnx", image_size=(1, 8, 16, 16))
    assert report.input == ("batch", 1, 8, 16, 16)
    (check,) = compare(net, OnnxRunner(tmp_path / "net.onnx"), [(2, 1, 8, 16, 16)])
    assert check.difference < 1e-3


@pytest.mark.slow
def test_an_exported_program_of_a_segmentation_network_takes_any_size(tmp_path):
    torch.manual_seed(0)
    small = {"depths": (1, 1), "dims": (16, 24)}
    net = vimamba.create_segmenter("test_vmamba", head="upernet", num_classes=3, **small).eval()
    path = tmp_path / "net.pt2"
    report = export_model(net, path, target="torch-export", image_size=(3, 64, 64))
    assert report.input == ("batch", 3, "height", "width")
    assert (1, 3, 75, 101) in [check.shape for check in report.checks]
    program = torch.export.load(path).module()
    for check in compare(net, lambda image: [program(image)], SHAPES):
        assert check.difference < 1e-5
