"""MobileMamba's parts and initialization; tests/parity compares it with the official code."""

import pytest
import timm
import torch
from torch import nn

from vimamba.layers.wavelet import haar
from vimamba.models.mobilemamba import split_widths


def test_the_images_of_a_batch_do_not_mix():
    """As they do in the official code's fallback for machines without Triton."""
    torch.manual_seed(0)
    model = timm.create_model("test_mobilemamba").eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        apart = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), apart)


def test_the_wavelet_of_a_square_and_back():
    square = torch.tensor([1.0, 2.0, 4.0, 9.0]).view(1, 4, 1, 1)
    bands = haar(square)
    torch.testing.assert_close(bands.flatten(), torch.tensor([8.0, -5.0, -3.0, 2.0]))
    torch.testing.assert_close(haar(bands), square)


def test_a_block_that_has_only_begun_doubles_its_input():
    block = timm.create_model("test_mobilemamba").eval().stages[0].blocks[0]
    x = torch.randn(2, 24, 5, 6)
    torch.testing.assert_close(block(x), 2 * x)


def test_step_sizes_start_small_and_every_state_decays_alike():
    mixer = timm.create_model("mobilemamba_t2").stages[0].blocks[0].mixer.wide.mixer
    assert not mixer.scan.A_log.any()
    assert (mixer.scan.D == 1).all()
    for part in (mixer.scan.dt_bias, mixer.scan.dt_proj[0].weight, mixer.scan.dt_proj[1].weight):
        assert 0 <= part.min() < 0.01
        assert 0.09 < part.max() <= 0.1


@pytest.mark.parametrize(
    ("dim", "shares", "expected"),
    [
        (144, (0.8, 0.2), (112, 28)),
        # 220 of 368 channels is halfway and rounded up
        (368, (0.6, 0.3), (224, 110)),
        (200, (0.8, 0.2), (160, 40)),
        # no more than exist
        (20, (0.8, 0.5), (16, 4)),
    ],
)
def test_scanned_channels_are_multiples_of_16(dim, shares, expected):
    assert split_widths(dim, *shares) == expected


def test_too_few_channels_are_refused():
    with pytest.raises(ValueError, match=r"dims=8 are too few for shares of 0.8 and 0.2"):
        timm.create_model("test_mobilemamba", dims=(8, 28, 40))


def test_pooled_features_are_normed_and_a_map_is_not():
    model = timm.create_model("test_mobilemamba", num_classes=5)
    assert isinstance(model.head.neck, nn.BatchNorm1d)
    model.reset_classifier(0, "")
    assert isinstance(model.head.neck, nn.Identity)
    model.reset_classifier(3, "catavgmax")
    assert model.head.neck.num_features == 80
    assert model(torch.randn(2, 3, 96, 96)).shape == (2, 3)
