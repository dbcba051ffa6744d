"""Heads and the maps of a backbone: what fits works, what does not is named."""

import pytest
import torch
from torch import nn

import vimamba
from vimamba.heads import registry

# one stage, and fewer blocks than levels
SHALLOW = [
    ("test_vmamba", {"depths": (1,), "dims": (16,)}),
    ("test_mambar", {"depth": 1}),
    ("test_plainmamba", {"depth": 2}),
    ("test_localvim", {"depth": 3}),
]
ON_BACKBONES = [vimamba.create_segmenter, vimamba.create_change_detector]


def see(network, size=64):
    """The size of what a network says of images."""
    image = torch.randn(2, 3, size, size)
    dates = [image, image.flip(0)] if hasattr(network, "fusion") else [image]
    with torch.no_grad():
        return network.eval()(*dates).shape


@pytest.mark.parametrize("create", ON_BACKBONES)
@pytest.mark.parametrize("head", vimamba.list_heads())
def test_a_head_reads_two_maps_or_more_and_says_what_it_lacks(create, head):
    for count in (2, 3):
        network = create("test_vmamba", head, num_classes=2, out_indices=range(count))
        assert see(network) == (2, 2, 64, 64)
    with pytest.raises(
        ValueError,
        match=f"head='{head}' does not fit the 1 feature map of model='test_vmamba'.*two levels or "
        "more; out_indices says",
    ):
        create("test_vmamba", head, num_classes=2, out_indices=(0,))


def test_maps_whose_strides_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"head='vss_unet' does not fit the 2 .*strides=\[4, 16\]"):
        vimamba.create_segmenter("test_vmamba", "vss_unet", num_classes=2, out_indices=(0, 2))


@pytest.mark.parametrize(("model", "sizes"), SHALLOW)
def test_backbones_of_one_stage_or_few_blocks_take_any_head(model, sizes):
    network = vimamba.create_segmenter(model, "fpn", num_classes=2, **sizes)
    assert len(network.encoder.channels) == len(network.encoder.strides) == 4
    assert see(network) == (2, 2, 64, 64)
    network.train()(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in network.encoder.levels.parameters())


@pytest.mark.parametrize("head", vimamba.list_heads())
def test_every_head_fits_a_backbone_of_one_stage(head):
    model, sizes = SHALLOW[0]
    assert see(vimamba.create_segmenter(model, head, num_classes=2, **sizes)) == (2, 2, 64, 64)


def test_features_too_fine_for_a_pyramid_are_named():
    with pytest.raises(ValueError, match="backbone='test_mambar' has features of stride 2 only"):
        vimamba.create_segmenter("test_mambar", num_classes=2, patch_size=2)


def test_what_a_head_of_yours_refuses_is_named(monkeypatch):
    monkeypatch.setattr(registry, "_HEADS", dict(registry._HEADS))

    @vimamba.register_head
    class Picky(nn.Module):
        finest_stride = 4

        def __init__(self, channels, strides, num_classes):
            super().__init__()
            raise ValueError(f"channels={channels} must be powers of two")

    with pytest.raises(ValueError, match=r"head='Picky' does not fit the 4 feature maps.*powers"):
        vimamba.create_segmenter("test_vmamba", "Picky", num_classes=2)
