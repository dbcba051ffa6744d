"""The feature pyramid of any timm backbone."""

import pytest
import timm
import torch

from vimamba.networks import FeaturePyramid

BACKBONES = [
    "resnet18",
    "test_convnext",
    "test_efficientnet",
    "swin_tiny_patch4_window7_224",
    "test_vit",
    "xcit_nano_12_p8_224",
    "test_vim",
    "test_localvim",
    "test_vmamba",
    "test_medmamba",
]


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_have_the_channels_and_strides_that_it_names(name):
    pyramid = FeaturePyramid(name, img_size=64).eval()
    with torch.no_grad():
        maps = pyramid(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == pyramid.channels
    assert [64 // m.shape[2] for m in maps] == pyramid.strides
    finest = 2 if name.startswith("xcit") else 4
    assert pyramid.strides == [finest * 2**i for i in range(4)]


def test_finer_levels_are_there_on_request():
    assert FeaturePyramid("resnet18", finest_stride=2).strides == [2, 4, 8, 16, 32]
    assert FeaturePyramid("resnet18", out_indices=(1, 3)).strides == [4, 16]


def test_any_size_goes_through_models_of_fixed_size():
    for name in ("test_vit", "test_vim", "swin_tiny_patch4_window7_224"):
        pyramid = FeaturePyramid(name).eval()
        with torch.no_grad():
            assert pyramid(torch.randn(1, 3, 64, 160))[0].shape[2:] == (16, 40)


def test_vmamba_and_vim_give_the_published_dense_features():
    vmamba = FeaturePyramid("vmamba_tiny_s1l8", depths=(1, 1, 1, 1)).body.model
    assert all(isinstance(norm, torch.nn.LayerNorm) for norm in vmamba.stage_norms)
    vim = FeaturePyramid("vim_tiny_patch16_224").body.model
    assert vim.taps == [5, 11, 17, 23]
    assert vim.cls_token is None


def test_localvim_gives_the_published_dense_features():
    pyramid = FeaturePyramid("localvim_tiny")
    assert pyramid.body.model.taps == [4, 9, 14, 19]
    assert list(pyramid.body.out_indices) == [0, 1, 2, 3]


def test_a_plain_backbone_is_read_at_every_quarter():
    pyramid = FeaturePyramid("vit_tiny_patch16_224").eval()
    assert list(pyramid.body.out_indices) == [2, 5, 8, 11]
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        third = pyramid.body(image)[2]
        torch.testing.assert_close(pyramid(image)[2], third)


def test_a_plain_backbone_needs_four_blocks():
    with pytest.raises(ValueError, match=r"out_indices=\(0, 1\) must list four blocks of test_vit"):
        FeaturePyramid("test_vit", out_indices=(0, 1))


def test_pretrained_filters_are_adapted_to_the_bands(tmp_path):
    model = timm.create_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    pyramid = FeaturePyramid(
        "test_resnet", pretrained=True, in_chans=1, pretrained_cfg_overlay=overlay
    )
    first = model.pretrained_cfg["first_conv"] + ".weight"
    ours = pyramid.body.model.state_dict()[first]
    torch.testing.assert_close(ours, model.state_dict()[first].sum(1, keepdim=True))


def test_of_blocks_with_maps_of_one_stride_the_last_is_read():
    pyramid = FeaturePyramid("test_mamband").eval()
    assert pyramid.strides == sorted(set(pyramid.strides))
    maps = pyramid(torch.randn(1, 3, 64, 64))
    assert [64 // m.shape[2] for m in maps] == pyramid.strides
