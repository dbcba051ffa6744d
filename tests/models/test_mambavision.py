"""MambaVision's windows, mixers and initialization; for parity see tests/parity."""

import pytest
import timm
import torch
from torch import nn

from vimamba.layers import Stage, WindowStage
from vimamba.models.mambavision import WindowScan
from vimamba.timm_layers import Attention


@pytest.mark.parametrize(("depth", "scans"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_the_first_half_of_a_stage_scans_and_the_rest_attends(depth, scans):
    model = timm.create_model("test_mambavision", depths=(1, 1, depth, 1), device="meta")
    kinds = [type(block.mixer) for block in model.stages[2].blocks]
    assert kinds == [WindowScan] * scans + [Attention] * (depth - scans)


class Neighbors(nn.Module):
    """Adds to every token the sum of its window."""

    def forward(self, x):
        return x + x.sum(1, keepdim=True)


def test_a_block_sees_its_window_and_zeros_beyond_the_map():
    stage = WindowStage(nn.Identity(), [Neighbors()], window=4)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    out = stage(x)
    expected = x.clone()
    for rows in (slice(0, 4), slice(4, 8)):
        for columns in (slice(0, 4), slice(4, 8)):
            window = x[:, :, rows, columns]
            expected[:, :, rows, columns] += window.sum((2, 3), keepdim=True)
    torch.testing.assert_close(out, expected)


def test_tokens_of_a_window_run_row_by_row():
    class Count(nn.Module):
        def forward(self, x):
            return x + torch.arange(x.shape[1]).view(1, -1, 1)

    out = WindowStage(nn.Identity(), [Count()], window=2)(torch.zeros(1, 1, 2, 3))
    assert out[0, 0].tolist() == [[0, 1, 0], [2, 3, 2]]


def test_a_window_of_0_is_a_stage_of_convolutions():
    model = timm.create_model(
        "test_mambavision", windows=(0, 4, 0, 3), heads=(0, 4, 0, 4), device="meta"
    )
    assert [type(stage) for stage in model.stages] == [Stage, WindowStage, Stage, WindowStage]


def test_all_linear_layers_are_initialized_alike_and_step_size_biases_are_zero():
    torch.manual_seed(0)
    model = timm.create_model("mambavision_t", depths=(1, 1, 1, 1))
    for stage in model.stages[2:]:
        mixer = stage.blocks[0].mixer
        assert not mixer.scan.dt_bias.any()
        states = torch.arange(1.0, 9).expand_as(mixer.scan.A_log)
        torch.testing.assert_close(mixer.scan.A_log.exp(), states)
        for layer in (mixer.in_proj, mixer.x_proj, mixer.scan.dt_proj[0], mixer.out_proj):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_stages_of_other_numbers_are_refused():
    with pytest.raises(ValueError, match=r"windows=\(0, 4\) and heads=.* must name the same"):
        timm.create_model("test_mambavision", windows=(0, 4))
