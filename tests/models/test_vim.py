"""Vim's arguments, sizes and initialization; tests/parity compares it with the official code."""

import pytest
import timm
import torch

import vimamba  # noqa: F401  registers the models
from tests.closeness import assert_same


def test_vim_takes_any_size_and_the_built_one_unchanged():
    torch.manual_seed(0)
    fixed = timm.create_model("test_vim").eval()
    dynamic = timm.create_model("test_vim", dynamic_img_size=True).eval()
    dynamic.load_state_dict(fixed.state_dict())
    image = torch.randn(1, 3, 96, 96)
    assert_same(fixed(image), dynamic(image))
    resized = torch.randn(1, 3, 80, 160)
    fixed.set_input_size((80, 160))
    torch.testing.assert_close(fixed(resized), dynamic(resized))


def test_vim_refuses_another_size_with_the_way_out():
    with pytest.raises(AssertionError, match="image height must be 96; set_input_size"):
        timm.create_model("test_vim")(torch.randn(1, 3, 64, 96))


def test_vim_refuses_images_below_a_patch():
    with pytest.raises(ValueError, match=r"img_size=\(8, 8\) is smaller than a patch"):
        timm.create_model("test_vim", img_size=8)


@pytest.mark.parametrize(
    ("argument", "value"), [("class_token", "end"), ("global_pool", "max")], ids=str
)
def test_vim_names_the_choices(argument, value):
    with pytest.raises(ValueError, match=f"{argument}='{value}' is unknown; choose from"):
        timm.create_model("test_vim", **{argument: value})


def test_pooling_over_the_patches_leaves_the_class_token_out():
    model = timm.create_model("test_vim", global_pool="avg", num_classes=0)
    tokens = torch.randn(2, 37, 48)
    expected = torch.cat([tokens[:, :18], tokens[:, 19:]], dim=1).mean(1)
    torch.testing.assert_close(model.forward_head(tokens), expected)


def test_the_scan_starts_as_published():
    for block in timm.create_model("test_vim").blocks:
        scan = block.mixer.scan
        assert (scan.D == 1).all()
        states = torch.arange(1.0, block.mixer.d_state + 1)
        torch.testing.assert_close(scan.A_log.exp(), states.expand_as(scan.A_log))
        # only the first path is initialized with Mamba's step sizes
        steps = torch.nn.functional.softplus(scan.dt_bias[:1])
        assert steps.min() >= 0.99e-3
        assert steps.max() <= 0.101
        assert (scan.dt_bias[1:] == 0).all()
        assert scan.dt_proj[0].weight.abs().max() <= block.mixer.dt_rank**-0.5


def test_a_resized_vim_is_saved_and_read_again(tmp_path):
    model = timm.create_model("test_vim", num_classes=3).eval()
    model.set_input_size((64, 128))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(1, 3, 64, 128)
    assert_same(model(image), again(image))
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=96)
    assert other.pos_embed.shape[1] == 37


@pytest.mark.parametrize("blocks", [(0, 1, 2), (0, 1, 2, 4), (0, 1, 1, 2), (3, 2, 1, 0)])
def test_a_pyramid_needs_four_blocks_in_order(blocks):
    with pytest.raises(ValueError, match="four rising numbers of the 4 blocks"):
        timm.create_model("test_vim", features_only=True, pyramid=blocks)
