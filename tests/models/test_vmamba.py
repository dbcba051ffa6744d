"""VMamba's arguments and initialization; tests/parity compares it with the official code."""

import pytest
import timm
import torch

import vimamba  # noqa: F401  registers the models
from tests.backbones import mixers


def test_mamba_2_in_vmamba_takes_a_gate_and_a_bias():
    args = {"depths": (1,), "dims": (16,), "gated": True, "conv_bias": True}
    model = timm.create_model("test_vmamba_m2", **args)
    (mixer,) = mixers(model)
    model(torch.randn(2, 3, 32, 48)).square().sum().backward()
    assert mixer.in_proj.out_features == 32
    assert all(p.grad.abs().sum() > 0 for p in mixer.parameters())


def test_vmamba_names_the_mixers():
    with pytest.raises(
        ValueError, match=r"mixer='mamba' is unknown; choose from \['ss2d', 'ssd2d'"
    ):
        timm.create_model("test_vmamba", mixer="mamba")


@pytest.mark.parametrize(("height", "width"), [(131, 97), (132, 99), (129, 100)])
def test_the_first_generation_drops_partial_patches(height, width):
    """Like the official stem: one convolution with stride and kernel size four."""
    torch.manual_seed(0)
    model = timm.create_model("vmamba_tiny_v0", depths=(1, 1), dims=(8, 16), num_classes=5).eval()
    image = torch.randn(2, 3, height, width)
    whole = image[:, :, : height // 4 * 4, : width // 4 * 4]
    with torch.no_grad():
        assert model.stem(image).shape == (2, height // 4, width // 4, 8)
        torch.testing.assert_close(model(image), model(whole))
        shifted = image.clone()
        shifted[:, :, height // 4 * 4 :] += 1
        shifted[:, :, :, width // 4 * 4 :] += 1
        torch.testing.assert_close(model(shifted), model(whole))


@pytest.mark.parametrize("name", ["test_vmamba", "test_medmamba"])
def test_the_scan_starts_as_published(name):
    for mixer in mixers(timm.create_model(name)):
        assert (mixer.scan.D == 1).all()
        states = torch.arange(1.0, mixer.d_state + 1)
        torch.testing.assert_close(mixer.scan.A_log.exp(), states.expand_as(mixer.scan.A_log))
        steps = torch.nn.functional.softplus(mixer.scan.dt_bias)
        assert steps.min() >= 0.99e-3
        assert steps.max() <= 0.101
        assert mixer.scan.dt_proj[0].weight.abs().max() <= mixer.dt_rank**-0.5


def test_the_scan_of_mamba_2_starts_as_published():
    for mixer in mixers(timm.create_model("test_vmamba_m2")):
        assert (mixer.scan.D == 1).all()
        assert (mixer.scan.A_log == 0).all()
        assert 0 <= mixer.scan.dt_bias.min() < mixer.scan.dt_bias.max() <= 0.1
