"""Padding to whole cells, and cropping, of grids of one to three axes."""

import pytest
import torch

from vimamba.layers import crop, pad_to_cells


@pytest.mark.parametrize(
    ("size", "cell", "fewest", "padded"),
    [
        ((5,), [4], 1, (8,)),
        ((5, 8), [4, 8], 1, (8, 8)),
        ((5, 8), [4, 8], 2, (8, 16)),
        ((3, 9, 4), [1, 4, 2], 2, (3, 12, 4)),
    ],
)
def test_zeros_at_the_ends_make_whole_cells_and_are_cropped_again(size, cell, fewest, padded):
    x = torch.rand(2, 3, *size) + 1
    y = pad_to_cells(x, cell, fewest)
    assert y.shape == (2, 3, *padded)
    assert y.sum() == pytest.approx(x.sum().item(), rel=1e-6)
    assert torch.equal(crop(y, size, padded), x)


def test_finer_and_coarser_results_lose_their_share():
    x = torch.arange(16).view(1, 1, 16)
    assert crop(x, (5,), (8,)).flatten().tolist() == list(range(10))  # twice as fine
    assert crop(x[..., :2], (5,), (8,)).flatten().tolist() == [0, 1]  # partly padding
    assert crop(x[..., :2], (4,), (8,)).flatten().tolist() == [0]
