"""DAMamba's resampling; tests/parity compares it with the official code."""

import pytest
import timm
import torch
from torch import nn

from vimamba.models.damamba import Resample


def resample_by(*offsets):
    """Fetches each group of two channels from the same offset (width, height) at every cell."""
    layer = Resample(2 * len(offsets), 2)
    nn.init.zeros_(layer.offset.weight)
    with torch.no_grad():
        layer.offset.bias.copy_(torch.tensor(offsets, dtype=torch.float32).flatten())
    return layer


def test_channels_come_from_the_cell_at_the_offset_and_zeros_from_beyond_the_map():
    x = torch.randn(2, 6, 4, 5)
    guide = torch.randn(2, 6, 4, 5)
    found = resample_by((0, 0), (1, 0), (0, -2))(x, guide)
    torch.testing.assert_close(found[:, :2], x[:, :2])
    torch.testing.assert_close(found[:, 2:4, :, :4], x[:, 2:4, :, 1:])
    torch.testing.assert_close(found[:, 2:4, :, 4], torch.zeros(2, 2, 4))
    torch.testing.assert_close(found[:, 4:, 2:], x[:, 4:, :2])
    torch.testing.assert_close(found[:, 4:, :2], torch.zeros(2, 2, 2, 5))


def test_between_cells_the_mean_counts():
    x = torch.randn(1, 2, 3, 4)
    found = resample_by((0.5, 0))(x, x)
    beyond = torch.cat([x[..., 1:], torch.zeros(1, 2, 3, 1)], dim=3)
    torch.testing.assert_close(found, (x + beyond) / 2)


def test_half_precision_fetches_from_the_same_places():
    """In bfloat16 there is no number between 56 and 56.25."""
    x = torch.randn(1, 2, 2, 64)
    layer = resample_by((0.125, 0))
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, x)
    torch.testing.assert_close(found, layer(x, x), rtol=0, atol=1e-3)


def test_groups_divide_the_channels():
    with pytest.raises(ValueError, match="head_dim=7 must divide the 16 channels"):
        timm.create_model("test_damamba", head_dim=7)


def test_offsets_start_small_and_not_at_zero():
    torch.manual_seed(0)
    model = timm.create_model("damamba_tiny", depths=(1, 1, 1, 1))
    offset = model.stages[1].blocks[0].mixer.resample.offset
    assert offset.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not offset.bias.any()
