"""Heads compared with other implementations, with the same weights."""

import pytest
import torch
import torch.nn.functional as F

from vimamba.heads import FCNHead, FPNHead, TopDownHead, UNetHead, UPerNetHead, VSSHead, list_heads
from vimamba.heads.unet import AttentionGate

CHANNELS, STRIDES = [8, 16, 24, 32], [4, 8, 16, 32]
SIZES = [(24, 32), (12, 16), (6, 8), (3, 4)]


def pyramid(channels=CHANNELS, sizes=SIZES):
    torch.manual_seed(0)
    return [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]


def copy_in_order(ours, theirs):
    """Set the same random weights in both, module by module in the order of computation."""
    for mine, other in zip(ours, theirs, strict=True):
        state = {
            k: torch.rand_like(v) for k, v in mine.state_dict().items() if v.is_floating_point()
        }
        values = iter(state.values())
        mine.load_state_dict(state, strict=False)
        taken = {
            k: next(values) if v.is_floating_point() else v for k, v in other.state_dict().items()
        }
        other.load_state_dict(taken)


def test_upernet_is_that_of_transformers():
    modeling = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    config = modeling.UperNetConfig(hidden_size=12, pool_scales=[1, 2, 3, 6], num_labels=5)
    theirs = modeling.UperNetHead(config, CHANNELS).eval()
    ours = UPerNetHead(CHANNELS, STRIDES, 5, width=12).eval()
    copy_in_order(
        [
            *ours.pooling.convs,
            ours.pooling.bottleneck,
            *ours.laterals,
            *ours.outputs,
            ours.fuse,
            ours.classifier,
        ],
        [
            *(block.layers[1] for block in theirs.psp_modules.blocks),
            theirs.bottleneck,
            *theirs.lateral_convs,
            *theirs.fpn_convs,
            theirs.fpn_bottleneck,
            theirs.classifier,
        ],
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(pyramid()), theirs(pyramid()), rtol=1e-4, atol=1e-2)


def test_the_auxiliary_head_is_that_of_transformers():
    modeling = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    config = modeling.UperNetConfig(
        auxiliary_channels=12, auxiliary_num_convs=2, auxiliary_concat_input=False, num_labels=5
    )
    theirs = modeling.UperNetFCNHead(config, CHANNELS, in_index=2).eval()
    ours = FCNHead(CHANNELS, STRIDES, 5, width=12, depth=2).eval()
    copy_in_order([*ours.convs, ours.classifier], [*theirs.convs, theirs.classifier])
    with torch.no_grad():
        torch.testing.assert_close(ours(pyramid()), theirs(pyramid()), rtol=1e-4, atol=1e-3)


def test_unet_is_that_of_segmentation_models():
    decoders = pytest.importorskip("segmentation_models_pytorch.decoders.unet.decoder")
    theirs = decoders.UnetDecoder(
        encoder_channels=(3, *CHANNELS[:-1], 32, 40), decoder_channels=(64, 32, 16, 16, 16)
    ).eval()
    channels, strides = [8, 16, 24, 32, 40], [2, 4, 8, 16, 32]
    ours = UNetHead(channels, strides, 5, width=64).eval()
    copy_in_order(
        [conv for block in ours.blocks for conv in block.convs],
        [conv for block in theirs.blocks for conv in (block.conv1, block.conv2)],
    )
    features = pyramid(channels, [(48, 64), *SIZES])
    with torch.no_grad():
        expected = theirs([torch.zeros(2, 3, 96, 128), *features])
        torch.testing.assert_close(ours(features), ours.classifier(expected))


def test_the_attention_gate_is_that_of_monai():
    nets = pytest.importorskip("monai.networks.nets.attentionunet")
    theirs = nets.AttentionBlock(2, f_int=4, f_g=16, f_l=8).eval()
    ours = AttentionGate(8, 16).eval()
    for conv in (theirs.W_g[0], theirs.W_x[0], theirs.psi[0]):
        conv.conv.bias = None  # a norm follows
    copy_in_order([ours.gate, ours.skip, ours.weight], [theirs.W_g, theirs.W_x, theirs.psi])
    skip, gate = torch.randn(2, 8, 6, 7), torch.randn(2, 16, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(ours(skip, gate), theirs(gate, skip))


def test_fpn_adds_up_what_every_level_says():
    torch.manual_seed(0)
    fine, coarse = pyramid()[:2]
    head = FPNHead([8, 16], [4, 8], 5, pyramid_width=6, width=7).eval()
    with torch.no_grad():
        low = head.laterals[1](coarse)
        high = head.laterals[0](fine) + F.interpolate(low, scale_factor=2)
        a = head.scales[0][0](head.outputs[0](high))
        b = F.interpolate(head.scales[1][0](head.outputs[1](low)), scale_factor=2, mode="bilinear")
        torch.testing.assert_close(head([fine, coarse]), head.classifier(a + b))


def test_fpn_convolves_once_per_doubling():
    head = FPNHead(CHANNELS, STRIDES, 5)
    assert [len(convs) for convs in head.scales] == [1, 1, 2, 3]


HEADS = {
    "upernet": (UPerNetHead, 4),
    "fpn": (FPNHead, 4),
    "unet": (UNetHead, 1),
    "attention_unet": (lambda *args: UNetHead(*args, attention=True), 1),
    "vss_unet": (VSSHead, 1),
    "top_down": (TopDownHead, 4),
}


def test_every_head_is_tested():
    assert list_heads() == sorted(HEADS)


@pytest.mark.parametrize("name", HEADS)
def test_levels_of_odd_sizes_fit_together(name):
    make, stride = HEADS[name]
    sizes = [(23, 31), (12, 16), (6, 8), (3, 4)]
    features = pyramid(sizes=sizes)
    logits = make(CHANNELS, STRIDES, 5).eval()(features)
    assert logits.shape == (2, 5, 23 * 4 // stride, 31 * 4 // stride)


@pytest.mark.parametrize("name", HEADS)
def test_an_impossible_pyramid_is_refused(name):
    make, _ = HEADS[name]
    with pytest.raises(ValueError, match=r"channels=\[8\] and strides=\[4\] must name two levels"):
        make([8], [4], 5)
    with pytest.raises(ValueError, match=r"strides=\[8, 4\] must grow"):
        make([8, 8], [8, 4], 5)


def test_the_vss_decoder_doubles_at_every_level():
    with pytest.raises(ValueError, match=r"strides=\[4, 16\] must double"):
        VSSHead([8, 16], [4, 16], 5)


@pytest.mark.parametrize("strides", [[4, 8, 16, 32], [2, 4, 8, 16], [1, 2, 4, 8], [8, 16, 32, 64]])
def test_unet_and_vss_reach_the_resolution_of_the_image(strides):
    for make in (UNetHead, VSSHead):
        logits = make(CHANNELS, strides, 1)(pyramid())
        assert logits.shape[2:] == (24 * strides[0], 32 * strides[0])
