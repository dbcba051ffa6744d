"""TinyViM at other sizes and its files; tests/parity compares it with the official code."""

import pytest
import timm
import torch

from tests.parity.official import filled_state
from vimamba.models.tinyvim import LaplaceMixer, LocalBlock, ScanBlock


@pytest.mark.parametrize("pool", [2, 4, 8])
@pytest.mark.parametrize("size", [(16, 24), (13, 7), (1, 3)], ids=str)
def test_a_map_is_the_sum_of_its_coarse_part_and_its_details(size, pool):
    """At sizes, too, that the official code refuses."""
    mixer = LaplaceMixer(8, 4, pool, scan_order="cross")
    mixer.mix = torch.clone
    flat = torch.randn(2, 4, 1, 1).expand(2, 4, *size)
    torch.testing.assert_close(mixer.mix_coarse(flat, float(pool)), flat)
    mixer.mix = torch.zeros_like
    x = torch.randn(2, 4, *size)
    squares = [
        x[:, :, i : i + pool, j : j + pool]
        for i in range(0, size[0], pool)
        for j in range(0, size[1], pool)
    ]
    details = [square - square.mean((2, 3), keepdim=True) for square in squares]
    columns = -(-size[1] // pool)
    rows = [torch.cat(details[i : i + columns], dim=3) for i in range(0, len(details), columns)]
    torch.testing.assert_close(mixer.mix_coarse(x, float(pool)), torch.cat(rows, dim=2))


def test_the_last_block_of_a_stage_scans_and_one_in_the_middle_of_the_third():
    model = timm.create_model("tinyvim_small", device="meta")
    for i, stage in enumerate(model.stages):
        kinds = [type(block) for block in stage.blocks]
        expected = [LocalBlock] * (len(kinds) - 1) + [ScanBlock]
        if i == 2:
            expected[4] = ScanBlock
        assert kinds == expected


def test_both_classifiers_of_a_file_are_averaged(tmp_path):
    state = filled_state("tinyvim_test")
    torch.save({"model": state}, tmp_path / "TinyViM.pth")
    model = timm.create_model(
        "test_tinyvim",
        dims=(16, 24, 48, 40),
        num_classes=10,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "TinyViM.pth")},
    )
    for leaf in ("weight", "bias"):
        expected = (state[f"head.{leaf}"] + state[f"dist_head.{leaf}"]) / 2
        assert torch.equal(getattr(model.head.fc, leaf), expected)
    del state["dist_head.weight"], state["dist_head.bias"]
    assert torch.equal(model.from_official(state)["head.fc.weight"], state["head.weight"])
