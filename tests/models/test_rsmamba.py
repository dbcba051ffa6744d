"""The shuffled path of RSMamba, and its pooling of the last patches."""

import pytest
import timm
import torch

import vimamba
from vimamba.models.rsmamba import complete_patches


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("test_rsmamba", num_classes=5, **{"depth": 2, **kwargs})


def run(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(torch.ones(1, 3, 64, 64).cumsum(-1) / 64)


def test_the_shuffle_is_torchs_in_training_and_its_own_in_evaluation():
    model = create()
    assert torch.equal(run(model, 1), run(model, 1))
    assert not torch.equal(run(model, 1), run(model, 2))
    model.eval()
    assert torch.equal(run(model, 1), run(model, 2))
    fixed = create(reshuffle=False)
    fixed.load_state_dict(model.state_dict())
    assert torch.equal(run(fixed, 1), run(model, 1))


def test_only_the_last_path_is_shuffled_over_the_same_cells():
    paths = vimamba.scan_paths("bidirectional + shuffle(seed=3)", 4, 5)
    drawn = create().shuffle_last(paths)
    assert torch.equal(drawn[:2], paths[:2])
    assert not torch.equal(drawn[2], paths[2])
    assert torch.equal(drawn[2].sort().values, paths[2].sort().values)


def test_every_block_has_its_own_order():
    orders = create(depth=3).scan_orders
    assert orders == [f"bidirectional + shuffle(seed={block})" for block in range(3)]
    assert create(scan_order="cross").blocks[0].gate.out_features == 4


@pytest.mark.parametrize(("side", "padded"), [(224, 232), (64, 72), (60, 72), (17, 32), (8, 16)])
def test_the_last_patches_are_completed(side, padded):
    assert complete_patches(torch.ones(1, 3, side, 64), 16, 8).shape == (1, 3, padded, 72)
    model = create(img_size=(side, 64))
    assert model.patch_embed.grid_size == (-(-side // 8), 8)
    assert model(torch.rand(1, 3, side, 64)).shape == (1, 5)


def test_pixels_that_no_patch_covers_are_cropped():
    image = torch.rand(1, 3, 60, 64)
    assert torch.equal(complete_patches(image, 8, 16), image[:, :, :56, :56])
