"""`ChannelAffine` is a 1x1 depthwise convolution."""

import torch
import torch.nn.functional as F

from vimamba.layers import ChannelAffine


def test_it_equals_a_convolution_of_each_channel():
    torch.manual_seed(0)
    layer, image = ChannelAffine(5).double(), torch.randn(2, 5, 3, 4, dtype=torch.float64)
    inputs = [image.requires_grad_(), layer.weight, layer.bias]
    found, expected = layer(image), F.conv2d(*inputs, groups=5)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_it_keeps_half_precision_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            ChannelAffine(2)(torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)).dtype is torch.bfloat16
        )
