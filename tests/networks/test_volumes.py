"""Segmentation networks for volumes: SegMamba and our own U-Net."""

import pytest
import torch

import vimamba
from vimamba.networks import SegMamba, VSSUNet3d

SEGMAMBA = {"depths": (1, 1), "dims": (4, 6), "hidden_size": 8, "num_classes": 2, "in_chans": 3}
VSS = {"dims": (4, 6, 8), "depths": (0, 1, 1), "num_classes": 2, "in_chans": 3}


def make(kind, **kwargs):
    torch.manual_seed(0)
    return SegMamba(**SEGMAMBA, **kwargs) if kind == "segmamba" else VSSUNet3d(**VSS, **kwargs)


@pytest.mark.parametrize("kind", ["segmamba", "vss_unet"])
def test_odd_boxes_are_padded_cropped_and_trained_on(kind):
    orders = ["hilbert", "serpentine + interslice"]
    # drop path skips no block
    net = make(kind, scan_order=orders).eval()
    volume = torch.randn(1, 3, 9, 12, 7)
    logits = net(volume)
    assert logits.shape == (1, 2, 9, 12, 7)
    logits.square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", ["segmamba", "vss_unet"])
def test_checkpointing_changes_no_gradient(kind):
    net, volume = make(kind), torch.randn(1, 3, 8, 8, 16)
    gradients = []
    for enabled in (False, True):
        # the same number of random numbers for drop path
        torch.manual_seed(1)
        net.set_grad_checkpointing(enabled)
        net.zero_grad()
        net(volume).square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(*gradients)


def test_slices_are_those_of_any_volume():
    """The published table has as many parts as a 128^3 volume has slices in each stage."""
    net = make("segmamba", scan_order="raster + raster(reverse=True) + interslice").eval()
    pieces = [f"raster + raster(reverse=True) + interslice(pieces={n})" for n in (6, 3)]
    fixed = make("segmamba", scan_order=pieces).eval()
    with torch.no_grad():
        same = torch.randn(1, 3, 12, 8, 8)
        assert torch.equal(net(same), fixed(same))
        other = torch.randn(1, 3, 8, 12, 8)
        assert not torch.equal(net(other), fixed(other))


@pytest.mark.parametrize("name", ["nano", "tiny", "small", "base"])
def test_the_stages_are_those_of_the_patch(name):
    kwargs = {"num_classes": 2, "patch_size": (16, 96, 96), "spacing": (5.0, 1.0, 1.0)}
    with torch.device("meta"):
        net = vimamba.create_network(f"vss_unet_3d_{name}", **kwargs, aux=True)
        outputs = net.forward_all(torch.empty(1, 1, 16, 96, 96))
    sizes = [tuple(output.shape[2:]) for output in outputs]
    expected = [(16, 96, 96), (16, 48, 48), (16, 24, 24), (8, 12, 12)]
    assert sizes == expected[: len(net.stages) - 1]


def test_small_patches_have_fewer_stages():
    net = vimamba.create_network("vss_unet_3d_nano", num_classes=2, patch_size=(8, 8, 16))
    assert [len(stage.blocks) for stage in net.stages] == [1, 2]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dims": (4, 8)}, "must have one entry per stage"),
        ({"strides": [[1, 1], [2, 2], [2, 2]]}, "three axes per stage"),
        ({"patch_size": (8, 8)}, "three sides"),
        ({"spacing": (1.0, 1.0, 1.0)}, "needs a patch_size"),
        ({"pretrained": True}, "no published weights"),
    ],
)
def test_what_makes_no_network_is_refused(kwargs, message):
    stages = {"dims": (4, 6, 8), "depths": (0, 1, 1)}
    with pytest.raises(ValueError, match=message):
        vimamba.create_network("vss_unet_3d_nano", num_classes=2, **{**stages, **kwargs})
