"""Resizing of grids of one to three axes."""

import pytest
import torch
import torch.nn.functional as F

from vimamba.layers import resize


@pytest.mark.parametrize(
    ("size", "new", "mode"),
    [((5,), (8,), "linear"), ((5, 4), (8, 7), "bilinear"), ((3, 4, 5), (6, 5, 7), "trilinear")],
)
def test_linear_interpolation_is_that_of_torch(size, new, mode):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    assert torch.equal(resize(x, new), F.interpolate(x, size=new, mode=mode))
    assert torch.equal(resize(x, new, mode="nearest"), F.interpolate(x, size=new))


def test_a_slope_stays_a_slope_between_the_borders():
    # centers of 4 cells are at 0.5, 1.5, ...; those of 8 at 0.25, 0.75, ...; ends are repeated
    x = torch.tensor([0.5, 1.5, 2.5, 3.5]).view(1, 1, 4)
    expected = torch.tensor([0.5, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.5]).view(1, 1, 8)
    torch.testing.assert_close(resize(x, (8,)), expected)


def test_what_shrinks_is_averaged_along_every_axis():
    # a triangle of two cells on each side: weights 1, 3, 3, 1 and, at the border, 3, 3, 1
    x = torch.tensor([1.0, 0, 0, 8, 0, 0, 0, 0])
    half = torch.tensor([3 / 7, 24 / 8, 8 / 8, 0])
    torch.testing.assert_close(resize(x.view(1, 1, 8), (4,), antialias=True), half.view(1, 1, 4))
    volume = torch.einsum("i,j,k->ijk", x, x + 1, x + 2)[None, None]
    expected = torch.einsum("i,j,k->ijk", half, half + 1, half + 2)[None, None]
    torch.testing.assert_close(resize(volume, (4, 4, 4), antialias=True), expected)


def test_averaging_images_is_that_of_torch():
    x = torch.randn(2, 3, 12, 10)
    expected = F.interpolate(x, size=(5, 4), mode="bilinear", antialias=True)
    assert torch.equal(resize(x, (5, 4), antialias=True), expected)
    assert resize(x, (12, 10), antialias=True) is x


@pytest.mark.parametrize(
    ("shape", "size", "options", "message"),
    [
        ((1, 2, 4, 4), (2,), {}, r"size=\(2,\) must be that of the 2 axes of x"),
        ((1, 2), (), {}, r"size=\(\) must be that of the 0 axes of x, one to three"),
        ((1, 2, 2, 2, 2, 2), (2, 2, 2, 2), {}, "of the 4 axes of x, one to three"),
        ((1, 2, 4), (2,), {"mode": "nearest", "antialias": True}, "goes with mode='linear'"),
    ],
)
def test_mistakes_are_named(shape, size, options, message):
    with pytest.raises(ValueError, match=message):
        resize(torch.zeros(shape), size, **options)
