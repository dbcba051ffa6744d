"""A whole segmentation network as an ONNX file gives the network's numbers."""

import pytest
import torch

import vimamba
from vimamba.exporting import export_model
from vimamba.exporting.onnx_file import OnnxRunner
from vimamba.exporting.report import compare

WHOLE = {"depths": (1,) * 4, "decoder_depths": (1,) * 4, "dims": (16, 32, 64, 128)}
# UPerNet pools to fixed grids, which a file computes for one size only
NETWORKS = {
    "upernet": ("test_vmamba", {"head": "upernet"}, True),
    "unet": ("test_vmamba", {"head": "unet"}, False),
    "vm_unet": ("vm_unet", WHOLE, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_an_onnx_file_of_a_segmentation_network_gives_its_numbers(kind, tmp_path):
    torch.manual_seed(0)
    name, kwargs, fixed_size = NETWORKS[kind]
    net = vimamba.create_segmenter(name, num_classes=3, **kwargs).eval()
    path = tmp_path / "net.onnx"
    export_model(net, path, image_size=(3, 64, 64), fixed_size=fixed_size)
    shapes = [(2, 3, 64, 64)] if fixed_size else [(2, 3, 64, 64), (1, 3, 75, 101)]
    for check in compare(net, OnnxRunner(path), shapes):
        assert check.difference < 1e-4
