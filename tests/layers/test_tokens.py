"""Resampling of token grids, against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from vimamba.layers.tokens import resample_tokens


@pytest.mark.parametrize("old", [(6, 6), (5, 9), (14, 14)], ids=str)
@pytest.mark.parametrize("new", [(3, 20), (28, 7), (1, 1), (6, 14)], ids=str)
def test_resampled_tokens_equal_torchs_antialiased_bicubic(old, new):
    tokens = torch.randn(2, old[0] * old[1], 8)
    grid = tokens.double().unflatten(1, old).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    expected = expected.permute(0, 2, 3, 1).flatten(1, 2)
    # the weights are float32
    torch.testing.assert_close(
        resample_tokens(tokens, old, new).double(), expected, atol=1e-5, rtol=0
    )


def test_the_same_grid_is_kept_bit_for_bit():
    tokens = torch.randn(1, 63, 8)
    assert torch.equal(resample_tokens(tokens, (7, 9), (7, 9)), tokens)


def test_tokens_keep_their_dtype():
    tokens = torch.randn(1, 16, 8, dtype=torch.bfloat16)
    assert resample_tokens(tokens, (4, 4), (2, 3)).dtype == torch.bfloat16
