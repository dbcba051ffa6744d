"""Parts of individual plain families; tests/parity compares with the official code."""

import pytest
import timm
import torch
from torch.nn.functional import softplus

import vimamba
from vimamba.checkpoints import CheckpointError
from vimamba.models.plainmamba import directions


def test_plainmamba_names_the_way_of_every_step():
    # 2 x 3: right, right, down, left, left; then back; columns: down, right, up, right, down
    ways = directions(vimamba.scan_paths("serpentine", 2, 3), 3)
    assert ways.tolist() == [
        [0, 1, 1, 4, 2, 2],
        [0, 1, 1, 3, 2, 2],
        [0, 4, 1, 3, 1, 4],
        [0, 3, 2, 4, 2, 3],
    ]


def test_plainmamba_restarts_after_a_zero_token_and_takes_the_longer_axis():
    # on 4 columns: a jump of one row and two columns, and one of two rows
    assert directions(torch.tensor([[0, 6, -1, 3, 11]]), 4).tolist() == [[0, 1, 0, 0, 4]]


@pytest.mark.parametrize("name", ["test_plainmamba", "test_videomamba"])
def test_step_sizes_start_as_published_from_no_bias(name):
    for block in timm.create_model(name).blocks:
        assert (block.mixer.scan.dt_bias == 0).all()
        assert block.mixer.x_proj is not None


def test_adventurer_starts_as_mamba_2():
    for block in timm.create_model("test_adventurer").blocks:
        scan = block.mixer.scan
        assert 1 <= scan.A_log.exp().min() < scan.A_log.exp().max() <= 16
        assert 0.99e-3 <= softplus(scan.dt_bias).min() < softplus(scan.dt_bias).max() <= 0.101


def test_adventurer_goes_backwards_where_the_weights_were_trained_to():
    orders = timm.create_model("test_adventurer", depth=7).scan_orders
    assert orders == ["raster"] * 2 + ["raster(reverse=True)"] * 2 + ["raster"] * 3


def test_adventurer_is_causal():
    """Patches see earlier ones and the mean; with another mean all of them change."""
    torch.manual_seed(0)
    model = timm.create_model("test_adventurer", scan_order="raster", depth=1).eval()
    tokens = torch.randn(1, 5, 32)
    block, paths = model.blocks[0], model.insert_prefix(torch.arange(4)[None], [4], 4)
    assert paths.tolist() == [[5, 0, 1, 2, 3, 4]]
    changed = tokens.clone()
    # the same mean of the normalized tokens
    changed[:, [2, 3]] = tokens[:, [3, 2]]
    moved = (block(tokens, paths) - block(changed, paths)).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, True, True, True]


def test_arm_weighs_both_sides_of_the_class_token_equally():
    model = timm.create_model("test_arm")
    patches = torch.tensor([[[1.0], [2.0], [4.0]]])
    assert model.average(patches).tolist() == [[2.0]]
    assert model.average(patches[:, 1:]).tolist() == [[3.0]]
    assert model.average(patches[:, :1]).tolist() == [[1.0]]


def test_arm_meets_the_class_token_of_an_odd_grid_at_one_place():
    model = timm.create_model("test_arm", img_size=48)
    paths = model.embed(torch.randn(1, 3, 48, 48))[1]["cross"]
    assert paths[:2].tolist() == [[*range(10)], [0, 3, 7, 1, 4, 5, 8, 2, 6, 9]]
    assert torch.equal(paths[2:], paths[:2].flip(1))


def test_the_registers_of_mamba_r_are_joined_for_a_classifier_only():
    model = timm.create_model("test_mambar")
    image = torch.randn(2, 3, 64, 64)
    assert model.head.in_features == 3 * 24
    model.reset_classifier(5, "avg")
    assert model.head.in_features == 48
    assert model(image).shape == (2, 5)
    model.reset_classifier(7, "token")
    assert model.head.in_features == 3 * 24
    assert timm.create_model("test_mambar", num_classes=0)(image).shape == (2, 48)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("test_mambar", "reduction", 5),
        ("test_mambar", "num_registers", 0),
        ("test_mamband", "merge_after", 4),
        ("test_adventurer", "head_dim", 5),
    ],
)
def test_sizes_that_cannot_be_are_named(name, argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value} must"):
        timm.create_model(name, **{argument: value})


def test_a_file_of_another_number_of_registers_is_refused():
    model = timm.create_model("test_mambar")
    state = {"pos_embed": torch.zeros(1, 16, 48), "pos_embed_cls": torch.zeros(1, 4, 48)}
    with pytest.raises(CheckpointError, match="4 registers in the file, 3 in the model"):
        model.from_official(state)
